"""Watches the folder of a run, and shows its progress."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.runs import paths
from pipeline.runs.history import EpochRecord
from pipeline.tracking.display import Display
from pipeline.tracking.writer import INTERVAL, Position


class RunWatcher:
    """Watches the folder of a run in a thread: shows its position, its events and its finished epochs.

    Args:
        folder: of the run.
        records: returns the finished epochs.
        display: shows the run.
    """

    def __init__(
        self,
        folder: Path,
        records: Callable[[], list[EpochRecord]],
        display: Display,
    ) -> None:
        self._file, self._events = folder / paths.PROGRESS, folder / paths.EVENTS
        self._events_shown = len(_lines(self._events))
        self._records = records
        self._display = display
        self._shown: int | None = None
        with contextlib.suppress(OSError):  # shared storage may fail for a moment
            self._shown = len(records())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="run-watcher", daemon=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches while the body runs; all epochs that it finishes are shown before this returns."""
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
        while not ended:
            ended = self._ended.wait(INTERVAL)
            try:
                records = self._records()
            except OSError:  # shared storage may fail for a moment
                continue
            with contextlib.suppress(OSError, ValueError):
                self._display.position(Position(*json.loads(self._file.read_text(encoding="utf-8"))))
            events = _lines(self._events)
            for event in events[self._events_shown :]:
                self._display.announce(event)
            self._events_shown = len(events)
            for record in records[len(records) if self._shown is None else self._shown :]:
                self._display.epoch(record)
            self._shown = len(records)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
