from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from data_prep.common.errors import TrainingError, UserError
from pipeline.config.schema import DataSettings, Settings
from tuning.trials import failures
from tuning.trials.failures import Failure


def task_error(cause: Exception) -> Exception:
    """An error as Ray wraps it that was raised in a trial."""
    text = "".join(traceback.format_exception(cause))
    return RayTaskError("train", text, cause).as_instanceof_cause()


NODE_LOST = """The actor died unexpectedly before finishing this task.
The actor died because its node has died. Node Id: 5d
the actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""
KILLED = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. Some common causes include: (1) the process was killed by the OOM
killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly"""


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (task_error(UserError("correct this")), Failure("correct this")),
        (task_error(TrainingError("the loss became nan")), Failure("the loss became nan", own=True)),
        (task_error(ValueError("a defect")), Failure("ValueError: a defect")),
        (RayActorError(error_msg=KILLED), Failure("its process was killed", passes=True)),
        (RayActorError(error_msg=NODE_LOST), Failure("its node was lost", passes=True)),
        (None, Failure("its process was killed", passes=True)),
    ],
)
def test_a_failure_has_one_sentence_and_says_whether_it_passes(error: Exception | None, failure: Failure) -> None:
    assert failures.of_trial(error) == failure


def test_too_little_memory_of_a_machine_is_said_with_a_remedy() -> None:
    failure = failures.of_trial(OutOfMemoryError("Task was killed due to the node running low on memory."))
    assert failure.passes
    assert "ran out of memory" in failure.reason and "search.max_concurrent" in failure.reason


@pytest.mark.parametrize(
    ("reasons", "epochs", "stops"),
    [
        (["a", "a"], 0, False),
        (["a", "a", "a"], 0, True),
        (["a", "a", "b"], 0, False),
        (["a", "a", "a"], 1, False),
    ],
)
def test_three_that_fail_alike_before_any_epoch_end_a_search(
    textures: Path, reasons: list[str], epochs: int, stops: bool
) -> None:
    train = Settings(data=DataSettings(path=str(textures)))
    found = failures.of_all(train, reasons, epochs)
    assert found == ("the first 3 trials failed alike: a" if stops else None)


def test_a_data_set_that_is_gone_ends_a_search(tmp_path: Path) -> None:
    train = Settings(data=DataSettings(path=str(tmp_path / "gone")))
    assert str(tmp_path / "gone") in str(failures.of_all(train, ["any"], 10))
