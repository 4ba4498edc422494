"""Settings of glibc's malloc that keep freed memory in the process, instead of returning it to the kernel.

By default glibc maps each large buffer at its allocation, and the kernel zeroes its pages at the first access: on a CPU
that doubles the time of a training step. With these settings, freed memory is kept for the next allocation. Ray trains
in a thread other than the main one, and glibc gives such threads small arenas, which cannot keep more than 64 MiB: so
all threads share the main arena.

Other C libraries ignore the settings. Environment variables must be set before a process starts;
:func:`keep_freed_memory` changes the running process.
"""

from __future__ import annotations

import ctypes
import platform

LARGEST = 2**31 - 1
NEVER = -1
TOP_PAD = 64 * 2**20

_SETTINGS = {  # environment variable: (parameter of mallopt, value)
    "MALLOC_TRIM_THRESHOLD_": (-1, NEVER),
    "MALLOC_TOP_PAD_": (-2, TOP_PAD),
    "MALLOC_MMAP_THRESHOLD_": (-3, LARGEST),
    "MALLOC_ARENA_MAX": (-8, 1),
}

ENVIRONMENT = {name: str(value) for name, (_, value) in _SETTINGS.items()}
"""Environment variables with these settings, for processes to be started."""


def keep_freed_memory() -> bool:
    """Applies the settings to this process; returns whether its C library accepts them."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    accepted = [mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.values()]
    return all(accepted)
