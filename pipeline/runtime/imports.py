"""Imports that take seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """What a command imports in the body stays until it ends, and the garbage collector leaves it alone: to look for
    garbage there, while importing torch and MLflow, in each full collection later and at the exit, takes seconds.

    For commands, once in a process: of what is garbage by then, cycles stay, too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
