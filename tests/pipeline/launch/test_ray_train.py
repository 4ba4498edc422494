"""Claims about what is done with Ray Train's errors and files, without starting Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.train import ControllerError, WorkerGroupError

from data_prep.common.errors import UserError
from pipeline.launch import ray_train
from pipeline.runs import paths
from pipeline.runs.status import failure_recorded


def test_a_workers_user_error_reaches_the_user_as_it_is(tmp_path: Path) -> None:
    wrong = UserError("the loss became nan")
    assert ray_train.explain(ControllerError(wrong), tmp_path) is wrong
    assert list(tmp_path.iterdir()) == []


def test_a_user_error_is_not_retried_and_other_errors_are_and_are_reported(tmp_path: Path) -> None:
    restarts = ray_train.FailureReporter(tmp_path)
    with pytest.raises(UserError, match="damaged"):
        restarts.after_exception(None, {0: RuntimeError("gloo"), 1: UserError("image 7 is damaged")})
    assert not (tmp_path / paths.EVENTS).exists()
    restarts.after_exception(None, {1: RuntimeError("gloo")})
    assert (
        "worker 1 failed (RuntimeError: gloo): resuming from the latest checkpoint"
        in (tmp_path / paths.EVENTS).read_text()
    )


def test_a_dead_worker_is_one_sentence_and_a_file_with_the_whole_story(tmp_path: Path) -> None:
    died = RuntimeError(
        "The actor died: its worker process has died. Common causes include\nThe actor died. More words."
    )
    error = ray_train.explain(WorkerGroupError("[Rank 1 Error Snippet]: a traceback", {1: died}), tmp_path)
    assert str(error) == (
        "worker 1 failed (RuntimeError: The actor died), and cluster.max_failures allows no further restart: "
        f"details in {tmp_path / 'error.log'}"
    )
    with pytest.raises(UserError), failure_recorded(tmp_path):
        raise error
    assert "a traceback" in (tmp_path / "error.log").read_text()


@pytest.mark.parametrize(
    ("gpus", "share", "fitting"),
    [(1, 0.1, 10), (1, 0.2, 5), (8, 0.1, 80), (4, 0.4, 8), (2, 0.3, 6), (2, 1.0, 2), (0, 0.5, 0)],
)
def test_as_many_processes_fit_as_have_a_share_of_one_gpu(gpus: int, share: float, fitting: int) -> None:
    machine = {"CPU": 200.0, "GPU": float(gpus)}
    assert ray_train.room_on(machine, {"CPU": 2, "GPU": share}) == fitting
    assert ray_train.room_on({**machine, "CPU": 7}, {"CPU": 2, "GPU": share}) == min(3, fitting)
