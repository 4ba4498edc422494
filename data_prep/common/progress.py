"""What commands show: progress as a bar on a terminal or a line every LINE_SECONDS in a log file, durations, tables."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_SECONDS = 30.0
"""Interval between lines, in seconds, where standard error is no terminal."""


def format_duration(seconds: float) -> str:
    """A duration, such as 3 min 05 s or 2 h 10 min."""
    if seconds < 1:
        return "less than 1 s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def show(*parts: RenderableType, width: int) -> None:
    """Prints tables and texts on standard output: as wide as the terminal, or in `width` columns into a file or pipe,
    where lines end without blanks. Texts are not wrapped."""
    text = io.StringIO()
    console = Console(highlight=False) if sys.stdout.isatty() else Console(file=text, width=width, highlight=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, Text))
    for line in text.getvalue().splitlines():
        print(line.rstrip())


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} images/s")


@contextmanager
def image_progress(total: int) -> Iterator[Callable[[int], None]]:
    """Shows on standard error how many of `total` images are done; yields the function that adds to that number."""
    if not sys.stderr.isatty():
        yield _Lines(total).advance
        return
    columns = (BarColumn(), MofNCompleteColumn(), _ImagesPerSecond(), TimeRemainingColumn())
    with Progress(*columns, **_on_terminal()) as progress:
        bar = progress.add_task("", total=total)
        yield lambda units: progress.advance(bar, units)


@contextmanager
def phase_display() -> Iterator[Callable[[str], None]]:
    """Shows on a terminal what an operation without countable parts does at present; yields the function that sets it.

    Shows nothing where standard error is no terminal.
    """
    if not sys.stderr.isatty():
        yield lambda phase: None
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), **_on_terminal()) as progress:
        shown = progress.add_task("", total=None)
        yield lambda phase: progress.update(shown, description=phase)


def _on_terminal() -> dict[str, Any]:
    """Options of a display that vanishes at the end. What is printed meanwhile goes above it, unless into a file."""
    return {"console": Console(stderr=True), "transient": True, "redirect_stdout": sys.stdout.isatty()}


class _Lines:
    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._started = self._written = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, units: int) -> None:
        """Counts images."""
        with self._lock:
            self._done += units
            now = time.monotonic()
            if now - self._written < LINE_SECONDS:
                return
            self._written = now
            speed = self._done / (now - self._started)
            minutes = (self._total - self._done) / speed / 60 if speed else 0
        print(
            f"{self._done} of {self._total} images, {speed:.0f} images/s, {minutes:.0f} min left",
            file=sys.stderr,
            flush=True,
        )
