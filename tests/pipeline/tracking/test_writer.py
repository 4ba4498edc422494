"""Claims about what a worker writes for the user's process: its position, and events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.runs import paths
from pipeline.tracking.writer import ProgressWriter
from tests.helpers.disks import disk_log


def test_the_position_is_replaced_as_a_whole_without_waiting_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_step = ProgressWriter(tmp_path).phase(2, "training", 10)
    with disk_log(monkeypatch) as log:
        on_step(1)
        on_step(2)
    assert log == [("rename", tmp_path / paths.PROGRESS)], "one write each half second"
    assert json.loads((tmp_path / paths.PROGRESS).read_text()) == [2, "training", 1, 10]


def test_an_event_is_a_line_with_its_time(tmp_path: Path) -> None:
    writer = ProgressWriter(tmp_path)
    writer.event("first")
    writer.event("second")
    lines = (tmp_path / paths.EVENTS).read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["first", "second"]


def test_silent_writers_write_nothing(tmp_path: Path) -> None:
    writer = ProgressWriter(tmp_path, silent=True)
    writer.phase(1, "training", 10)(1)
    writer.event("unheard")
    assert list(tmp_path.iterdir()) == []
