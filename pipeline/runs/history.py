"""The metrics of a run: a record per epoch, in every checkpoint and in the run's folder, and one per interval of steps,
for curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data_prep.common.files import write_atomically
from pipeline.runs import paths
from pipeline.runs.journal import JournalReader, JournalWriter


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    """Counted from 1."""
    finished_at: float
    """Seconds since 1970. A record keeps its time when the run is resumed, so trackers see it once."""
    metrics: dict[str, float]
    step: int | None = None
    """Training steps of the run at the end of the epoch; None in records of earlier versions."""


def write(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Replaces the records in `folder` atomically: a reader sees the old ones or the new ones."""
    write_atomically(folder / paths.HISTORY, json.dumps([asdict(record) for record in records], indent=1))


def read(folder: Path) -> list[EpochRecord]:
    """The records in the folder of a run or of a checkpoint, by epoch; empty before the first epoch is finished.

    A run whose file is missing or damaged, as after a power failure, has the records of its newest checkpoint.

    Raises:
        ValueError: the file of a checkpoint is damaged.
    """
    damage: ValueError | None = None
    try:
        return _EPOCHS.validate_json((folder / paths.HISTORY).read_bytes())
    except FileNotFoundError:
        pass
    except ValueError as error:
        damage = error
    for checkpoint in reversed(paths.stored_checkpoints(folder)):
        with suppress(OSError, ValueError):
            return _EPOCHS.validate_json((checkpoint / paths.HISTORY).read_bytes())
    if damage and not (folder / paths.IDENTITY).exists():
        raise damage
    return []


def restore(run: Path) -> str | None:
    """Writes the records of the newest checkpoint into the folder of a run whose file is missing or damaged.

    Returns:
        A sentence that says so; None if the file is whole, or no checkpoint has records.

    Raises:
        OSError: the folder cannot be written.
    """
    try:
        _EPOCHS.validate_json((run / paths.HISTORY).read_bytes())
        return None
    except FileNotFoundError:
        problem = "is missing"
    except ValueError:
        problem = "is damaged"
    for checkpoint in reversed(paths.stored_checkpoints(run)):
        with suppress(FileNotFoundError, ValueError):
            records = _EPOCHS.validate_json((checkpoint / paths.HISTORY).read_bytes())
            write(run, records)
            return f"{paths.HISTORY} {problem}: restored from checkpoint {checkpoint.name}"
    return None


_EPOCHS = TypeAdapter(list[EpochRecord])


@dataclass(frozen=True)
class StepRecord:
    """Means over an interval of steps, on rank 0."""

    step: int
    """Last step of the interval, counted from 1 over all epochs."""
    recorded_at: float
    """Seconds since 1970."""
    metrics: dict[str, float]


_STEP = TypeAdapter(StepRecord)


class StepLog:
    """Appends step records to a file in a run's folder, one line each.

    A step that is repeated after an interruption gives the same metrics and keeps its first record.

    Args:
        folder: of the run.
        every: steps per record; 0 records none.

    Raises:
        OSError: earlier records cannot be read.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._journal, self._every = JournalWriter(folder / paths.STEPS), every
        self._recorded = {record.step for record in read_steps(folder)}

    def due(self, step: int) -> bool:
        """Whether `step`, counted over all epochs, ends an interval that has no record yet."""
        return self._every > 0 and step % self._every == 0 and step not in self._recorded

    def add(self, record: StepRecord) -> None:
        """Queues a record, without touching the disk."""
        self._recorded.add(record.step)
        self._journal.add(to_line(record))

    def flush(self) -> None:
        """Writes the records that wait and flushes them to the disk; a full disk gets them later."""
        self._journal.flush()


def step_reader(file: Path) -> JournalReader[StepRecord]:
    """Reads a file of step records that grows, without lines that are truncated or damaged."""
    return JournalReader(file, _STEP.validate_json)


def read_steps(folder: Path) -> list[StepRecord]:
    """The step records in `folder`, by step, without lines that are truncated or damaged."""
    return sorted(step_reader(folder / paths.STEPS).read(), key=lambda record: record.step)


def to_line(record: StepRecord) -> str:
    """A record as a line of a journal."""
    return json.dumps(asdict(record))
