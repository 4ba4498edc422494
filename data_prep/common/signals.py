"""The signals that ask a command to save its work and end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NOTICES = tuple(
    number for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if (number := getattr(signal, name, None)) is not None
)
"""Notices of a terminal that closes, or of a scheduler that will take the machine (`sbatch --signal`)."""
STOPS = (signal.SIGTERM, *NOTICES)
"""All signals that mean the same as Ctrl-C."""

Handler = Callable[[int, FrameType | None], None]


def interrupt_on_stop() -> None:
    """From here on, each of STOPS raises KeyboardInterrupt in the main thread; one that is ignored (nohup) stays so."""
    _install((signal.SIGTERM,), _interrupt)
    _install(_heard(NOTICES), _interrupt)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Calls `handler` at Ctrl-C and at each of STOPS, while the body runs. Does nothing outside of the main thread,
    which alone receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _install((signal.SIGINT, *_heard(STOPS)), handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes that the body starts never see NOTICES, which a scheduler may send to all of a job's processes; those
    that arrive here meanwhile are handled afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOTICES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heard(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN)


def _install(numbers: tuple[int, ...], handler: Handler) -> dict[int, Any]:
    return {number: signal.signal(number, handler) for number in numbers}


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
