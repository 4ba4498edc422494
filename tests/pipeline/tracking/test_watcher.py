"""Claims about what the user's process shows of a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.runs import history, paths
from pipeline.runs.history import EpochRecord
from pipeline.tracking.display import Display
from pipeline.tracking.watcher import RunWatcher
from pipeline.tracking.writer import INTERVAL, ProgressWriter


def record(epoch: int) -> EpochRecord:
    metrics = {"train/loss": 0.5, "train/images_per_second": 100.0, "validation/top1": 0.25, "validation/top5": 0.75}
    return EpochRecord(epoch, 1.7e9, metrics)


def watched(folder: Path, display: Display) -> RunWatcher:
    return RunWatcher(folder, lambda: history.read(folder), display)


def test_finished_epochs_and_events_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = ProgressWriter(tmp_path)
    writer.event("before this session")
    history.write(tmp_path, [record(1)])
    with watched(tmp_path, Display(3, shown=True)).watching():
        writer.event("a worker failed")
        history.write(tmp_path, [record(1), record(2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("  a worker failed")
    assert lines[1:] == ["epoch 2/3  loss 0.5000  validation: top-1 25.00 %, top-5 75.00 %  100 images/s"]


def test_a_file_that_cannot_be_read_for_a_moment_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with watched(tmp_path, Display(3, shown=True)).watching():
        for name in (paths.PROGRESS, paths.HISTORY):
            (tmp_path / name).mkdir()  # reading it raises an OSError
        time.sleep(2 * INTERVAL)
        for name in (paths.PROGRESS, paths.HISTORY):
            (tmp_path / name).rmdir()
        history.write(tmp_path, [record(1)])
        ProgressWriter(tmp_path).event("a worker failed")
    assert [line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()] == [
        "a worker failed",
        "100 images/s",
    ]


def test_a_display_that_is_not_shown_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with watched(tmp_path, Display(1, shown=False)).watching():
        history.write(tmp_path, [record(1)])
    assert capsys.readouterr().out == ""


def test_the_position_of_an_earlier_session_is_removed(tmp_path: Path) -> None:
    ProgressWriter(tmp_path).phase(2, "training", 10)(3)
    assert (tmp_path / paths.PROGRESS).exists()
    with watched(tmp_path, Display(3, shown=False)).watching():
        assert not (tmp_path / paths.PROGRESS).exists()
