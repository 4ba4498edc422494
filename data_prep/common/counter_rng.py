"""Counter-based random numbers: functions of a seed and other integers, without state.

`mix` is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014); `uniform` is that generator, started at a hash
of the names.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


class Purpose(IntEnum):
    """What random numbers are used for; each purpose has a stream of its own, so numbers here never change."""

    ORDER = 0
    AUGMENTATION = 1
    HOLDOUT = 2
    WINDOW = 3
    OFFSET = 4
    ENCODING = 5
    SELECTION = 6
    PIXELS = 7


def mix(numbers: np.ndarray) -> np.ndarray:
    """A bijective hash of uint64 numbers of any shape."""
    mixed = numbers + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _SECOND
    return mixed ^ (mixed >> np.uint64(31))


def key(*names: int | np.ndarray) -> np.ndarray:
    """(n,) uint64: a hash of integers in this order; arrays broadcast."""
    hashed = np.zeros(1, np.uint64)
    for name in names:
        part = np.uint64(name % 2**64) if isinstance(name, int) else np.asarray(name).astype(np.uint64)
        hashed = mix(hashed ^ part)
    return hashed


def uniform(count: int, *names: int | np.ndarray) -> np.ndarray:
    """(n, count) float64 in [0, 1), where n is the length of the longest of the names."""
    start = key(*names)[:, None]
    numbers = mix(start + np.arange(count, dtype=np.uint64) * _GOLDEN)
    return (numbers >> np.uint64(11)) * 2.0**-53
