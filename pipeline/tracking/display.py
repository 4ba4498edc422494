"""Shows a run on standard output: one line per epoch and, on a terminal, a progress bar with the time left."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from data_prep.common.progress import format_duration
from pipeline.runs.history import EpochRecord
from pipeline.tracking.writer import Position


class Display:
    """One line per finished epoch and, on a terminal, a progress bar with the time left.

    Args:
        epochs: of the whole run.
        shown: False prints nothing.
    """

    def __init__(self, epochs: int, shown: bool) -> None:
        self._epochs = epochs
        self._shown = shown
        self._first: tuple[float, float] | None = None  # the first position: when it was seen, and its epochs
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(), transient=True, speed_estimate_period=600)
            self._task = self._bar.add_task("starting", total=None)

    def announce(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._shown:
            return
        if self._bar:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, flush=True)

    def start(self) -> None:
        """Shows the bar."""
        if self._bar:
            self._bar.start()

    def stop(self) -> None:
        """Removes the bar."""
        if self._bar:
            self._bar.stop()

    def position(self, position: Position) -> None:
        """Moves the bar to a position of the run."""
        done = position.epoch - 1 + (position.step / position.steps if position.phase == "training" else 1.0)
        if self._first is None:
            self._first = (time.monotonic(), done)
        if self._bar:
            self._bar.update(
                self._task,
                description=f"epoch {position.epoch}/{self._epochs} {position.phase}",
                total=self._epochs,
                completed=done,
            )

    def epoch(self, record: EpochRecord) -> None:
        """Prints the line of a finished epoch."""
        count = f"epoch {record.epoch:>{len(str(self._epochs))}}/{self._epochs}"
        self.announce(f"{count}  {_summary(record)}{self._time_left(record)}")

    def _time_left(self, record: EpochRecord) -> str:
        """Estimated from the pace since the first position; empty if no estimate is possible."""
        remaining = self._epochs - record.epoch
        if self._first is None or record.epoch <= self._first[1] or remaining == 0:
            return ""
        seen_at, done_before = self._first
        seconds_per_epoch = (time.monotonic() - seen_at) / (record.epoch - done_before)
        return f"  {format_duration(seconds_per_epoch * remaining)} left"


def _summary(record: EpochRecord) -> str:
    metrics = record.metrics
    name = next(key for key in metrics if key.endswith("/top5")).removesuffix("/top5")
    return (
        f"loss {metrics['train/loss']:.4f}  {name}: top-1 {100 * metrics[f'{name}/top1']:.2f} %, "
        f"top-5 {100 * metrics[f'{name}/top5']:.2f} %  {metrics['train/images_per_second']:.0f} images/s"
    )
