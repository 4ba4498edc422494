"""What commands show: progress as a bar on a terminal or a line every LINE_SECONDS in a log file, durations, tables."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
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

from data_prep.common.files import format_bytes

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


@contextmanager
def growth_shown(what: str, folder: Path) -> Iterator[None]:
    """While the body runs, shows on standard error how long it has taken, and how large the files in `folder` are: on a
    terminal all the time, in a log file every LINE_SECONDS."""
    ended, started = threading.Event(), time.monotonic()
    status = Console(stderr=True).status(what) if sys.stderr.isatty() else None

    def watch() -> None:
        while not ended.wait(1.0 if status else LINE_SECONDS):
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
            line = f"{what}: {format_duration(time.monotonic() - started)}, {format_bytes(size)} unpacked and listed"
            if status:
                status.update(line)
            else:
                print(line, file=sys.stderr, flush=True)

    def watch_safely() -> None:
        while not ended.is_set():
            with suppress(OSError):  # files come and go
                watch()

    thread = threading.Thread(target=watch_safely, name="progress", daemon=True)
    with status or nullcontext():
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


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
