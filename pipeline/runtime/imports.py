"""Faster imports of large packages."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Imports in the body without garbage collection, and excludes what they create from later collections.

    Collections during the imports of torch and MLflow, later full collections of their objects, and one at the exit
    take seconds. For commands, once per process: reference cycles that are garbage by then are never freed.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
