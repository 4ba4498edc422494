"""Reads blocks of a shuffled epoch from the disk ahead of the batches that need them."""

from __future__ import annotations

import numpy as np

from data_prep.loading.dataset import ShardedImages
from data_prep.loading.shuffle import BlockShuffle, Order


class Prefetcher:
    """Has the system read the blocks of the next window while the current one is in use."""

    def __init__(
        self, images: ShardedImages, order: Order, subset_indices: np.ndarray | None, world_size: int, rank: int
    ) -> None:
        self._images, self._order, self._subset_indices = images, order, subset_indices
        self._world_size, self._rank = world_size, rank
        self._asked: set[tuple[int, int]] = set()

    def at(self, position: int) -> None:
        """Reads ahead for the batch that begins at a position."""
        if not isinstance(self._order, BlockShuffle):
            return
        for lane in range(self._order.lanes):
            if self._shares(lane):
                _, number = self._order.window_at(position + (lane - position) % self._order.lanes)
                self._ask(lane, number)
                self._ask(lane, number + 1)

    def _shares(self, lane: int) -> bool:
        """Whether this rank loads images of the lane."""
        assert isinstance(self._order, BlockShuffle)
        return (lane - self._rank) % np.gcd(self._order.lanes, self._world_size) == 0

    def _ask(self, lane: int, number: int) -> None:
        assert isinstance(self._order, BlockShuffle)
        if (lane, number) in self._asked:
            return
        self._asked.add((lane, number))
        for first, end in self._order.blocks(lane, number):
            if self._subset_indices is not None:
                first, end = int(self._subset_indices[first]), int(self._subset_indices[end - 1]) + 1
            self._images.prefetch(first, end)
