"""The status of a run, from its folder alone."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from data_prep.common.errors import UserError, first_line
from pipeline.runs import claimed_folder, run_folder
from pipeline.runs.paths import ERROR_LOG, LOCK, OWNER, PROGRESS
from pipeline.runs.run_folder import RunFolder


class Status(NamedTuple):
    """Status of a run."""

    state: Literal["waiting", "running", "interrupted", "failed", "finished"]
    """A run is waiting if a process has claimed it and no worker has begun to train. One whose process was killed is
    interrupted."""
    note: str = ""
    """Which process trains it, or why it failed."""


def read(run: RunFolder, epochs: int) -> Status:
    """The status of a run at this moment, given the number of its finished epochs."""
    if claimed_folder.is_claimed(run.path, LOCK):
        return Status("running" if _has_begun(run.path) else "waiting", run_folder.owner(run.path))
    if epochs >= run.identity.settings.training.epochs:
        return Status("finished")
    if reason := _failure(run.path):
        return Status("failed", reason)
    return Status("interrupted")


@contextmanager
def failure_recorded(run: Path) -> Iterator[None]:
    """Keeps the error that ends the body in the folder of a run, with its traceback; removes that of an earlier one."""
    log = run / ERROR_LOG
    with suppress(OSError):
        log.unlink()
    try:
        yield
    except Exception as error:
        sentence = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        with suppress(OSError):
            log.write_text("\n".join([sentence, "", *traceback.format_exception(error)]), encoding="utf-8")
        raise


def _has_begun(run: Path) -> bool:
    """Whether a worker has written its position since the run was claimed."""
    try:
        return (run / PROGRESS).stat().st_mtime >= (run / OWNER).stat().st_mtime
    except OSError:
        return False


def _failure(run: Path) -> str | None:
    """Why the last session of a run failed; None if it did not."""
    try:
        return (run / ERROR_LOG).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        return None
