"""How far a run is: the worker notes it in the run's folder, the process that was started by the user shows it.

The note is a small file, rewritten at most twice a second. Training and its display share nothing else, so that workers
may run on any machine that sees the folder, and a display that dies harms nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from data_prep.common.progress import duration
from pipeline.runs.history import EpochRecord, write_atomically

logger = logging.getLogger(__name__)

FILE = "progress.json"
EVENTS = "events.log"
"""What happened to a run besides its epochs: a line each, with its time."""
INTERVAL = 0.5
"""Seconds between two notes, and between two looks at them."""
SENDING = 15
"""Seconds between two points in time at which what steps came to is sent to the tracker."""


class Position(NamedTuple):
    """Where a run stands."""

    epoch: int
    phase: str
    step: int
    """Steps of this phase that are done."""
    steps: int


class ProgressWriter:
    """The worker's side: says how far it is. Ranks other than the first are silent."""

    def __init__(self, folder: Path, silent: bool = False) -> None:
        self._file = folder / FILE
        self._silent = silent
        self._last = 0.0

    def phase(self, epoch: int, phase: str, steps: int) -> Callable[[int], None]:
        """A function that takes the number of steps done in this phase."""

        def on_step(step: int) -> None:
            now = time.monotonic()
            if not self._silent and now - self._last >= INTERVAL:
                self._last = now
                with contextlib.suppress(OSError):  # storage that is full: a checkpoint will say so
                    write_atomically(self._file, json.dumps(Position(epoch, phase, step, steps)))

        return on_step

    def say(self, event: str) -> None:
        """Tells the user of something that happened."""
        if self._silent:
            return
        try:
            with self._file.with_name(EVENTS).open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {event}\n")
        except OSError:  # storage that is full or away is one of the events
            logger.warning(event)


class Display:
    """The user's side: a line for each epoch and, on a terminal, a bar with the time left."""

    def __init__(self, epochs: int, shown: bool) -> None:
        self._epochs = epochs
        self._shown = shown
        self._began: tuple[float, float] | None = None  # when this session saw its first position, and which it was
        self._bar: Progress | None = None
        if shown and sys.stdout.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(), transient=True, speed_estimate_period=600)
            self._task = self._bar.add_task("starting", total=None)

    def announce(self, line: str) -> None:
        """Prints a line."""
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
        """Takes the bar away."""
        if self._bar:
            self._bar.stop()

    def position(self, position: Position) -> None:
        """Moves the bar."""
        done = position.epoch - 1 + (position.step / position.steps if position.phase == "training" else 1.0)
        if self._began is None:
            self._began = (time.monotonic(), done)
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
        self.announce(f"{count}  {_summary(record)}{self._left(record)}")

    def _left(self, record: EpochRecord) -> str:
        """Time left, from the pace of this session; nothing while there is none to go by."""
        remaining = self._epochs - record.epoch
        if self._began is None or record.epoch <= self._began[1] or remaining == 0:
            return ""
        started, done_before = self._began
        pace = (time.monotonic() - started) / (record.epoch - done_before)
        return f"  {duration(pace * remaining)} left"


class RunWatcher:
    """Watches a run's folder in a thread: shows where it stands, and passes each finished epoch on.

    Args:
        records: reads the history.
        pass_on: sends what is new to the tracker, given the history so far; called after each epoch, and every
            `SENDING` seconds.
    """

    def __init__(
        self,
        folder: Path,
        records: Callable[[], list[EpochRecord]],
        pass_on: Callable[[list[EpochRecord]], object],
        display: Display,
    ) -> None:
        self._file, self._events = folder / FILE, folder / EVENTS
        self._events_shown = len(_lines(self._events))
        self._records = records
        self._pass_on = pass_on
        self._display = display
        self._shown = len(records())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="follower", daemon=True)

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Follows while the body runs; what the body finished has been shown and passed on when it is left."""
        self._file.unlink(missing_ok=True)
        self._display.start()
        self._thread.start()
        try:
            yield
        finally:
            self._ended.set()
            self._thread.join()
            self._display.stop()

    def _watch(self) -> None:
        ended = False
        send_at = time.monotonic() + SENDING
        while not ended:
            ended = self._ended.wait(INTERVAL)
            records = self._records()
            with contextlib.suppress(FileNotFoundError):
                self._display.position(Position(*json.loads(self._file.read_text(encoding="utf-8"))))
            events = _lines(self._events)
            for event in events[self._events_shown :]:
                self._display.announce(event)
            self._events_shown = len(events)
            news = len(records) > self._shown
            for record in records[self._shown :]:
                self._display.epoch(record)
            self._shown = len(records)
            if news or ended or time.monotonic() >= send_at:
                self._pass_on(records)
                send_at = time.monotonic() + SENDING


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _summary(record: EpochRecord) -> str:
    metrics = record.metrics
    name = next(key for key in metrics if key.endswith("/top5")).removesuffix("/top5")
    return (
        f"loss {metrics['train/loss']:.4f}  {name}: top-1 {100 * metrics[f'{name}/top1']:.2f} %, "
        f"top-5 {100 * metrics[f'{name}/top5']:.2f} %  {metrics['train/images_per_second']:.0f} images/s"
    )
