"""A worker writes a run's progress and events into the run's folder, where the user's process reads them.

The folder is all that training and its display share: workers may run on any machine that sees it, and a display that
dies harms no run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_prep.common.files import write_atomically
from pipeline.runs import paths
from pipeline.runtime.background import BackgroundCalls

logger = logging.getLogger(__name__)

INTERVAL = 0.5
"""Minimum seconds between two writes of the position."""


class Position(NamedTuple):
    """Position of a run."""

    epoch: int
    """Counted from 1."""
    phase: str
    """Such as ``training``."""
    step: int
    """Finished steps of this phase."""
    steps: int
    """All steps of this phase."""


class ProgressWriter:
    """Writes the position and the events of a run into its folder.

    Args:
        folder: of the run.
        silent: write nothing, as on all ranks but the first.
        background: the thread that writes; by default the caller's.
    """

    def __init__(self, folder: Path, silent: bool = False, background: BackgroundCalls | None = None) -> None:
        self._file = folder / paths.PROGRESS
        self._silent, self._background = silent, background
        self._last = 0.0

    def phase(self, epoch: int, phase: str, steps: int) -> Callable[[int], None]:
        """Returns a function to call after each step, with the number of finished steps of this phase."""

        def on_step(step: int) -> None:
            now = time.monotonic()
            waiting = self._background is not None and not self._background.idle
            if not self._silent and not waiting and now - self._last >= INTERVAL:
                self._last = now
                self._call(functools.partial(self._write, Position(epoch, phase, step, steps)))

        return on_step

    def event(self, message: str) -> None:
        """Appends an event, a message for the user, to the events of the run."""
        if not self._silent:
            self._call(functools.partial(self._append, f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {message}\n"))

    def _call(self, write: Callable[[], None]) -> None:
        if self._background:
            self._background.submit(write)
        else:
            write()

    def _write(self, position: Position) -> None:
        with contextlib.suppress(OSError):  # a full disk is reported when a checkpoint is saved
            # Not flushed: the file is rewritten twice a second, and a resumed run starts with a new one.
            write_atomically(self._file, json.dumps(position), flush=False)

    def _append(self, line: str) -> None:
        try:
            with self._file.with_name(paths.EVENTS).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError:  # the event may be that the storage is full or away
            logger.warning(line.rstrip())
