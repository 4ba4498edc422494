"""Orders of the samples of an epoch: computed for any position, never stored.

A permutation of a hundred million samples is a function of a few numbers (a Feistel network, whose rounds add a hash of
one coordinate of a grid to the other; Black and Rogaway, CT-RSA 2002). It needs no memory and no time before the first
sample, and an epoch can start in its middle at the same cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data_prep.common.counter_rng import Purpose, key, mix

ROUNDS = 6


class Order(Protocol):
    """A permutation of the samples 0 … n−1."""

    def at(self, positions: np.ndarray) -> np.ndarray:
        """(m,) int64: the samples at these positions (m,)."""


@dataclass(frozen=True)
class Sequential:
    """The order in which samples are stored."""

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The positions themselves."""
        return np.asarray(positions, np.int64)


@dataclass(frozen=True)
class FullShuffle:
    """A random permutation of all samples, for data that fit into memory or are on a fast disk."""

    samples: int
    seed: int
    epoch: int

    def at(self, positions: np.ndarray) -> np.ndarray:
        """(m,) int64: the samples at these positions (m,)."""
        return permute(positions, self.samples, key(self.seed, self.epoch, Purpose.ORDER))


@dataclass(frozen=True)
class BlockShuffle:
    """A shuffle that reads whole blocks of consecutive samples, for data larger than memory.

    Blocks of `block` samples are shuffled and divided among `lanes`; each lane shuffles `window` of its samples at a
    time. Position p belongs to lane p mod lanes. A worker that takes every W-th position reads from lanes / W lanes
    alone if W divides their number; then no two workers read the same block, except for the few that two lanes share.
    The order does not depend on the number of workers.

    Blocks begin at another sample in each epoch, and wrap around at the end.
    """

    samples: int
    seed: int
    epoch: int
    block: int
    window: int
    lanes: int

    def at(self, positions: np.ndarray) -> np.ndarray:
        """(m,) int64: the samples at these positions (m,)."""
        positions = np.asarray(positions, np.int64)
        lane, place = positions % self.lanes, positions // self.lanes
        number = place // self.window
        size = np.minimum(self._length(lane) - number * self.window, self.window)
        keys = key(self.seed, self.epoch, Purpose.WINDOW, lane, number)
        place = number * self.window + permute(place - number * self.window, size, keys)
        return self._in_blocks(self._start(lane) + place)

    def window_at(self, position: int) -> tuple[int, int]:
        """Lane of a position, and the number of its window in that lane."""
        return position % self.lanes, position // self.lanes // self.window

    def blocks(self, lane: int, number: int) -> list[tuple[int, int]]:
        """The runs (first, end) of consecutive samples in a window of a lane; none if there is no such window."""
        length = int(self._length(np.array(lane)))
        first, end = number * self.window, min((number + 1) * self.window, length)
        if first >= end:
            return []
        samples = np.sort(self._in_blocks(int(self._start(np.array(lane))) + np.arange(first, end)))
        breaks = np.flatnonzero(np.diff(samples) != 1) + 1
        return [(int(run[0]), int(run[-1]) + 1) for run in np.split(samples, breaks)]

    def _length(self, lane: np.ndarray) -> np.ndarray:
        return (self.samples - lane + self.lanes - 1) // self.lanes

    def _start(self, lane: np.ndarray) -> np.ndarray:
        return lane * (self.samples // self.lanes) + np.minimum(lane, self.samples % self.lanes)

    def _in_blocks(self, place: np.ndarray) -> np.ndarray:
        """Samples at positions of the sequence of shuffled blocks; the incomplete block is the last one."""
        whole = self.samples // self.block
        number = place // self.block
        shuffled = permute(
            np.minimum(number, max(whole - 1, 0)), max(whole, 1), key(self.seed, self.epoch, Purpose.ORDER)
        )
        number = np.where(number < whole, shuffled, number)
        offset = int(key(self.seed, self.epoch, Purpose.OFFSET)[0] % np.uint64(self.samples))
        return (number * self.block + place % self.block + offset) % self.samples


def permute(positions: np.ndarray, size: int | np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(m,) int64: images of `positions` (m,) under random permutations of 0 … size−1, one for each key.

    Args:
        positions: each in 0 … size−1.
        size: of the permutations; one, or (m,).
        keys: (1,) or (m,) uint64.
    """
    sizes = np.broadcast_to(np.asarray(size, np.uint64), np.shape(positions))
    keys = np.broadcast_to(keys, np.shape(positions))
    result = np.asarray(positions).astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):  # the grid has a few more places than samples: positions that land there are permuted again
        result[outside] = _permute_grid(result[outside], sizes[outside], keys[outside])
        outside = outside[result[outside] >= sizes[outside]]
    return result.astype(np.int64)


def _permute_grid(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A permutation of a grid of rows × columns places, at least `sizes`, numbered row by row."""
    columns: np.ndarray = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    rows = (sizes + columns - np.uint64(1)) // columns
    row, column = places // columns, places % columns
    for turn in range(0, ROUNDS, 2):
        row = (row + mix(keys ^ mix(column + np.uint64(turn << 56))) % rows) % rows
        column = (column + mix(keys ^ mix(row + np.uint64(turn + 1 << 56))) % columns) % columns
    return row * columns + column
