"""Calls beside the training steps, in a thread: a step does not wait for storage that does not answer.

A hard NFS mount blocks every thread that touches it until its server is back. What rank 0 writes at each step would
hold up all ranks; a checkpoint, which has to be on the disk before training continues, still does.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundCalls:
    """Calls functions in one thread, in order. What they raise is ignored."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "storage")
        self._latest: Future[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether every call has returned."""
        return self._latest is None or self._latest.done()

    def submit(self, function: Callable[[], None]) -> None:
        """Calls `function` after those that were submitted before."""
        self._latest = self._pool.submit(function)

    def close(self) -> None:
        """Waits until every call has returned; nothing can be submitted afterwards."""
        self._pool.shutdown(wait=True)
