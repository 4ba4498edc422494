"""Memory for batches, used again when a batch is gone."""

from __future__ import annotations

import threading
import weakref

import numpy as np


class ReusedBuffers:
    """Allocates the pixels of batches; memory is reused when no array refers to it any more.

    New memory costs as much time as resizing small images into it: the system maps it page by page.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []
        self._lock = threading.Lock()

    def __call__(self, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        with self._lock:
            fitting = [memory for memory in self._free if len(memory) >= size]
            memory = fitting[0] if fitting else bytearray(size)
            self._free = [other for other in self._free if other is not memory and len(other) >= size]
        # Views of `pixels` keep it alive, so that the memory comes back when the last of them is gone.
        pixels = np.frombuffer(memoryview(memory), np.uint8, size).reshape(shape)
        owner = pixels.base if isinstance(pixels.base, np.ndarray) else pixels
        weakref.finalize(owner, self._give_back, memory).atexit = False
        return pixels

    def _give_back(self, memory: bytearray) -> None:
        with self._lock:
            self._free.append(memory)
