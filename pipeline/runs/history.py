"""What a run came to: a record of each epoch, which every checkpoint carries and the run's folder shows, and one of so
many steps at a time, for curves."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.common.files import write_atomically

FILE, STEPS = "history.json", "steps.jsonl"


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    """Counted from 1."""
    finished_at: float
    """Seconds since 1970. A record keeps its time when the run is resumed, so trackers see it once."""
    metrics: dict[str, float]


def write(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Puts the records into `folder`, in one step: a reader sees the old ones or the new ones."""
    write_atomically(folder / FILE, json.dumps([asdict(record) for record in records], indent=1))


def read(folder: Path) -> list[EpochRecord]:
    """The records in `folder`, by epoch; none where no epoch has been finished."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [EpochRecord(**record) for record in json.loads(text)]


@dataclass(frozen=True)
class StepRecord:
    """Means over the last few steps, as the first worker saw them."""

    step: int
    """The last of them, counted from 1 over all epochs."""
    recorded_at: float
    """Seconds since 1970."""
    metrics: dict[str, float]


class StepLog:
    """Writes records of steps into a run's folder, a line each.

    A step that is taken again after an interruption comes to the same, and keeps the record that it has.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self._file, self._every = folder / STEPS, every
        known = read_steps(folder)
        self._last = known[-1].step if known else 0
        if self._file.exists():  # a line that was cut off in the middle would spoil the next one
            write_atomically(self._file, "".join(map(_line, known)))

    def due(self, step: int) -> bool:
        """Whether `step`, counted over all epochs, ends a record that is not there yet."""
        return self._every > 0 and step % self._every == 0 and step > self._last

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Writes a record."""
        self._last = step
        with suppress(OSError), self._file.open("a", encoding="utf-8") as file:  # full: a checkpoint will say so
            file.write(_line(StepRecord(step, time.time(), metrics)))


def read_steps(folder: Path) -> list[StepRecord]:
    """The records of steps in `folder`, without a last line that is still being written."""
    try:
        lines = (folder / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    whole = itertools.takewhile(lambda line: line.endswith("\n"), lines)
    return [StepRecord(**json.loads(line)) for line in whole]


def _line(record: StepRecord) -> str:
    return json.dumps(asdict(record)) + "\n"
