"""Why a trial failed, in one sentence, and whether the same trial may succeed at another time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayActorError

from data_prep.common.errors import TrainingError, UserError
from data_prep.format.manifest import load_manifest
from pipeline.config.schema import Settings

ALIKE = 3
"""Trials that fail for the same reason, which is not in their settings, end a search in which none has trained an
epoch."""


@dataclass(frozen=True)
class Failure:
    """The end of a trial by an error."""

    reason: str
    """In one sentence."""
    passes: bool = False
    """It came from outside of the trial: a lost node, a killed process. The same trial can be tried again."""
    own: bool = False
    """It came from the trial's own settings: another trial may have none."""


def of_trial(error: Exception | None) -> Failure:
    """The failure of a trial that ended with this error of Ray; None if Ray has none."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, UserError):
        return Failure(str(cause), own=isinstance(cause, TrainingError))
    if error is None or isinstance(cause, RayActorError | OutOfMemoryError):
        return Failure(_end_of_process(cause), passes=True)
    return Failure((str(error).strip().splitlines() or [type(error).__name__])[-1])


def _end_of_process(error: Exception | None) -> str:
    """What ended a trial's process, from Ray's paragraph about it, which lists what else it might have been."""
    text = str(error)
    if isinstance(error, OutOfMemoryError) or "low on memory" in text:
        return (
            "its machine ran out of memory, and Ray ended its process: lower train.training.batch_size or "
            "search.max_concurrent"
        )
    if "node has died" in text:
        return "its node was lost"
    return "its process was killed"


def of_all(train: Settings, reasons: list[str], epochs: int) -> str | None:
    """Why every further trial would fail, too; None if nothing says so.

    Args:
        train: what all trials share.
        reasons: of the trials that have failed for other reasons than their own settings.
        epochs: that all trials together have finished.
    """
    try:
        load_manifest(Path(train.data.path))
    except UserError as error:
        return str(error)
    if epochs == 0 and len(reasons) >= ALIKE and len(set(reasons)) == 1:
        return f"the first {len(reasons)} trials failed alike: {reasons[0]}"
    return None
