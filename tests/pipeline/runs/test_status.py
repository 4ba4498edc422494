"""Claims about the status of a run, which is read from its folder alone."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import UserError
from data_prep.format.manifest import Manifest, load_manifest
from pipeline.config.schema import Settings
from pipeline.config.settings_io import resolve
from pipeline.runs import history, paths, run_folder, status
from pipeline.runs.history import EpochRecord
from pipeline.runs.status import Status, failure_recorded


@pytest.fixture
def data(textures: Path) -> Manifest:
    return load_manifest(textures)


def settings(folder: Path) -> Settings:
    content: dict[str, Any] = {
        "data": {"path": "anywhere"},
        "run": {"storage": str(folder)},
        "training": {"epochs": 1},
    }
    return resolve(Settings, content, "test")


def test_a_run_is_waiting_then_running_then_interrupted_failed_or_finished(tmp_path: Path, data: Manifest) -> None:
    ours = f"process {os.getpid()} on "
    with run_folder.claim(settings(tmp_path), data) as run:
        run.begin()
        state, note = status.read(run, len(run.history()))
        assert (state, note[: len(ours)]) == ("waiting", ours)
        (run.path / paths.PROGRESS).touch()
        assert status.read(run, len(run.history())).state == "running"
    assert status.read(run, len(run.history())) == Status("interrupted"), (
        "as after a kill: the system releases the lock"
    )

    with pytest.raises(UserError), failure_recorded(run.path):
        raise UserError("the loss became nan\nin step 3")
    assert status.read(run, len(run.history())) == Status("failed", "the loss became nan")
    with pytest.raises(RuntimeError), failure_recorded(run.path):
        raise RuntimeError("CUDA error: 700\nsee the log")
    assert status.read(run, len(run.history())) == Status("failed", "RuntimeError: CUDA error: 700")
    assert "test_status.py" in (run.path / paths.ERROR_LOG).read_text(), "its traceback is there"

    with pytest.raises(KeyboardInterrupt), failure_recorded(run.path):
        raise KeyboardInterrupt
    assert status.read(run, len(run.history())) == Status("interrupted")

    history.write(run.path, [EpochRecord(1, 0.0, {})])
    assert status.read(run, len(run.history())) == Status("finished")


def test_a_claim_from_an_earlier_session_that_left_its_position_is_waiting(tmp_path: Path, data: Manifest) -> None:
    with run_folder.claim(settings(tmp_path), data) as run:
        run.begin()
        (run.path / paths.PROGRESS).touch()
    os.utime(run.path / paths.PROGRESS, (1, 1))
    with run_folder.claim(settings(tmp_path), data):
        assert status.read(run, len(run.history())).state == "waiting"


def test_a_look_at_a_lock_does_not_refuse_a_run_that_starts(tmp_path: Path, data: Manifest) -> None:
    with run_folder.claim(settings(tmp_path), data) as run:
        run.begin()
    with (run.path / paths.LOCK).open("rb") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.05, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with run_folder.claim(settings(tmp_path), data):
            pass
