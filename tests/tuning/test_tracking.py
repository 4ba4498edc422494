"""Claims about what a search delivers of its trials."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from data_prep.format.manifest import load_manifest
from pipeline.config.settings_io import resolve
from pipeline.tracking import delivery
from pipeline.tracking.mlflow_store.store import SETTING
from tests.helpers.tracked import train, write_run
from tuning import search_folder, tracking
from tuning.config import SearchSettings


def test_a_trial_that_is_named_twice_is_delivered_and_counted_once(
    textures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "END_SECONDS", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    content = {
        "train": {"data": {"path": str(textures), "image_size": 16, "flip": False}, "run": {"storage": str(tmp_path)}},
        "search": {"name": "s", "space": {"depth": [1], "width": [4]}},
    }
    settings = resolve(SearchSettings, content, "test.yaml")
    with search_folder.claim(settings, load_manifest(textures)) as folder:
        folder.begin()
        run = write_run(folder.path / "4", "http://127.0.0.1:9", in_search=True)
        train(run, 2)
        lacking = []
        for again in ([], ["4"]):
            said: list[str] = []
            caplog.clear()
            delivered = tracking.delivered(folder, ["4"], SETTING, said.append)
            with caplog.at_level(logging.WARNING), delivered as more:
                for name in again:
                    more(name)
            lacking += re.findall(r"lacks (\d+ of \d+) metric rows", " ".join([*said, *caplog.messages]))
    assert len(lacking) == 2 and lacking[0] == lacking[1]
