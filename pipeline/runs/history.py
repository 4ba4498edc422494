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


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    """Counted from 1."""
    finished_at: float
    """Seconds since 1970. A record keeps its time when the run is resumed, so trackers see it once."""
    metrics: dict[str, float]


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
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._file, self._every = folder / paths.STEPS, every
        known = read_steps(folder)
        self._last = known[-1].step if known else 0
        if self._file.exists():  # without damaged lines
            write_atomically(self._file, "".join(map(_line, known)))

    def due(self, step: int) -> bool:
        """Whether `step`, counted over all epochs, ends an interval that has no record yet."""
        return self._every > 0 and step % self._every == 0 and step > self._last

    def add(self, record: StepRecord) -> None:
        """Appends a record."""
        self._last = record.step
        # A full disk is reported when a checkpoint is saved.
        with suppress(OSError), self._file.open("a", encoding="utf-8") as file:
            file.write(_line(record))


def read_steps(folder: Path) -> list[StepRecord]:
    """The step records in `folder`, without lines that are truncated or damaged."""
    try:
        lines = (folder / paths.STEPS).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    records: list[StepRecord] = []
    for line in lines:
        if line.endswith(b"\n"):
            with suppress(ValueError):
                records.append(_STEP.validate_json(line))
    return records


def _line(record: StepRecord) -> str:
    return json.dumps(asdict(record)) + "\n"
