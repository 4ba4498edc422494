"""Claims about requests to a worker from outside."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs import paths
from pipeline.runtime.coordination import StepAction
from pipeline.training import setup
from pipeline.training.context import ASK_SECONDS, RayContext


@pytest.fixture
def context(tmp_path: Path) -> RayContext:
    """The first of Ray's workers, outside of Ray."""
    worker: Any = RayContext.__new__(RayContext)
    worker.rank = 0
    worker.watch_requests_in(tmp_path)
    return worker


def asked(requested: Any, seconds: float = 3 * ASK_SECONDS) -> list[StepAction]:
    """What was requested in a while."""
    end, found = time.monotonic() + seconds, []
    while time.monotonic() < end:
        if action := requested():
            found.append(action)
        time.sleep(0.01)
    return found


def test_each_request_to_save_is_heard_once_and_is_answered(context: RayContext, tmp_path: Path) -> None:
    with context.requests() as requested:
        assert asked(requested) == []
        for _ in range(2):
            (tmp_path / paths.SAVE).touch()
            assert asked(requested) == [StepAction.SAVE]
            context.saved()
            assert not (tmp_path / paths.SAVE).exists() and asked(requested) == []
        (tmp_path / paths.STOP).touch()
        assert set(asked(requested)) == {StepAction.STOP}
    assert not (tmp_path / paths.STOP).exists()


@pytest.mark.parametrize(("given", "elastic", "expected"), [(None, False, None), (None, True, 25), (8, True, 8)])
def test_a_worker_of_an_elastic_run_needs_no_more_memory_when_others_leave(
    given: int | None, elastic: bool, expected: int | None
) -> None:
    from pipeline.config.schema import Settings
    from pipeline.config.settings_io import resolve

    content = {
        "data": {"path": "x"},
        "training": {"batch_size": 100, "micro_batch_size": given},
        "cluster": {"workers": 4, "min_workers": 1 if elastic else None},
    }
    assert setup.micro_batch_size(resolve(Settings, content, "test")) == expected
