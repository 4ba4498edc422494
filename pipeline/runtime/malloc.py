"""Memory that is freed stays with the process, instead of going back to the kernel after every operation.

glibc maps large buffers anew at each allocation, and the kernel zeroes each of their pages at the first touch: on a CPU
that doubles the time of a training step. Here freed memory is kept for the next operation. Ray trains in a thread
that is not the main one, and glibc gives such threads small arenas of their own, in which nothing over 64 MiB can be
kept: so all threads share the main arena.

Only glibc knows these knobs; elsewhere nothing happens. An environment variable must be there when a process starts;
:func:`keep_freed_memory` does the same for the process that is running.
"""

from __future__ import annotations

import ctypes
import platform

LARGEST = 2**31 - 1
NEVER = -1
TOP_PAD = 64 * 2**20

_KNOBS = {  # environment variable: (parameter of mallopt, value)
    "MALLOC_TRIM_THRESHOLD_": (-1, NEVER),
    "MALLOC_TOP_PAD_": (-2, TOP_PAD),
    "MALLOC_MMAP_THRESHOLD_": (-3, LARGEST),
    "MALLOC_ARENA_MAX": (-8, 1),
}

ENVIRONMENT = {name: str(value) for name, (_, value) in _KNOBS.items()}
"""Variables for processes that are still to be started."""


def keep_freed_memory() -> bool:
    """Sets the knobs of this process; says whether its C library has them."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    accepted = [mallopt(parameter, value) == 1 for parameter, value in _KNOBS.values()]
    return all(accepted)
