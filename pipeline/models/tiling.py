"""Tiles: how an axis of an image is cut into overlapping windows, and the copies that make the windows.

Large images are cut into tiles, each computed from a window that is wider by the reach of the filters, so that the cost
is proportional to the number of pixels. Suffixes of tensors name their axes: W the entries that are copied, A and E any
axes before and after.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.fused import gather_entries


class Tiles(NamedTuple):
    """Approximate sides of a tile: larger ones share more of a window, but need longer sums."""

    rows: int
    columns: int
    whole: int
    """Largest number of outputs for which an axis is one tile; its reflected borders are then part of the matrix."""


CPU_TILES = Tiles(16, 8, 32)
GPU_TILES = Tiles(28, 28, 56)
"""A GPU multiplies faster than it reads: twice the multiplications for half of the copies."""
SMALLEST_TAP = 1e-7
"""Fraction of its largest tap below which a filter is cut to a window: float32 would round the rest away."""


def padded_size(size: int) -> int:
    """P = 2·(⌊(size + 2) / 2⌋ + 1), the period of the grid on which a side of `size` pixels is filtered."""
    return 2 * ((size + 2) // 2 + 1)


class Axis:
    """How one axis of `size` pixels is cut into tiles; NumPy only.

    `tiles` tiles of `tile` outputs each are computed on a circular grid of `period` pixels, at its positions `kept`.
    For a small axis this is the whole padded axis, and `from_pixels` puts the reflected borders into a matrix; for a
    large one it is a window, which contains copies of the reflected pixels.

    Args:
        size: pixels of the axis.
        step: 2 where every second output is left out, otherwise 1.
        magnitude: (period,) largest tap of the filters at each lag along this axis.
        tile: desired number of outputs of a tile; a divisor of the axis near it is taken instead where there is one.
        whole: see `Tiles`.
    """

    def __init__(self, size: int, step: int, magnitude: NDArray[np.float64], tile: int, whole: int) -> None:
        self.size, self.step, self.period = size, step, padded_size(size)
        kept = np.arange(0, self.period, 2)[1:-1] if step == 2 else np.arange(2, self.period - 2)
        signed = (np.arange(self.period) + self.period // 2) % self.period - self.period // 2
        self._reach = int(np.abs(signed)[magnitude > SMALLEST_TAP * magnitude.max()].max())
        self.output = len(kept)
        self.whole = self.output <= whole or 2 * self._reach >= self.period  # no window is wider than the axis
        self.tile, self.tiles, self.kept = self.output, 1, kept
        if not self.whole:
            self.tile = _tile(self.output, tile)
            self.tiles = -(-self.output // self.tile)
            first = self._reach + self._reach % step  # subsampling keeps even positions, of a window as of the whole
            window = first + step * (self.tile - 1) + self._reach + 1
            self._start, self._padded = kept[0] - first, self.period
            self.period, self.kept = window + window % step, first + step * np.arange(self.tile)

    def on_grid(self, kernels: NDArray, axis: int) -> NDArray:
        """Kernels on the padded axis → the same on the grid of a tile."""
        if self.whole:
            return kernels
        lags = np.arange(-self._reach, self._reach + 1)
        moved = np.moveaxis(kernels, axis, 0)
        result = np.zeros((self.period, *moved.shape[1:]), kernels.dtype)
        result[lags % self.period] = moved[lags % self._padded]
        return np.moveaxis(result, 0, axis)

    def from_pixels(self, matrix: NDArray) -> NDArray:
        """A matrix (…, period) for a padded axis → (…, size) for its pixels; unchanged for a window."""
        return matrix @ _reflection(self.size) if self.whole else matrix

    def pixels(self) -> NDArray[np.int64]:
        """(period, tiles): the pixel at each place of the windows; all of them, in order, where there is one tile."""
        if self.whole:
            return np.arange(self.size)[:, None]
        positions = self._start + np.arange(self.period)[:, None] + self.step * self.tile * np.arange(self.tiles)
        return _reflection(self.size).argmax(1)[positions % self._padded]


class GatherWindows(nn.Module):
    """Copies entries along the middle axis, (A, size, E) → (A, len(index), E); the backward pass adds in a fixed order.

    Args:
        index: entry that each place of the result is a copy of.
        size: number of entries.
    """

    index: Tensor
    sources: Tensor
    weights: Tensor

    def __init__(self, index: NDArray[np.int64], size: int) -> None:
        super().__init__()
        self.trivial = np.array_equal(index, np.arange(size))
        if self.trivial:
            return
        # For each entry the places it was copied to; there are as many rounds as copies of the most copied entry.
        order = np.argsort(index, kind="stable")
        starts, counts = np.searchsorted(index[order], np.arange(size)), np.bincount(index, minlength=size)
        rounds = np.arange(counts.max())[:, None]
        used = rounds < counts
        self.register_buffer("index", torch.from_numpy(index), persistent=False)
        self.register_buffer(
            "sources", torch.from_numpy(np.where(used, order[np.where(used, starts + rounds, 0)], 0)), persistent=False
        )
        self.register_buffer("weights", constant(used.astype(np.float64), *used.shape, 1), persistent=False)

    def forward(self, x_AWE: Tensor) -> Tensor:
        return x_AWE if self.trivial else gather_entries(x_AWE, self.index, self.sources, self.weights)


def _tile(size: int, about: int) -> int:
    """The divisor of `size` nearest to `about`, so that no tile is partly empty; `about` itself if none is near."""
    near = [tile for tile in range(-(-about // 2), 2 * about) if size % tile == 0]
    return min(near, key=lambda tile: abs(tile - about), default=about)


def _reflection(size: int) -> NDArray[np.float64]:
    """The matrix (period, size) that pads a side by reflection, without repeating the pixel at the border."""
    period = padded_size(size)
    before = (period - size) // 2
    return np.pad(np.eye(size), ((before, period - size - before), (0, 0)), mode="reflect")


def constant(matrix: NDArray[np.float64], *shape: int) -> Tensor:
    """A matrix as a contiguous tensor of `shape`, in the default precision."""
    return torch.from_numpy(matrix.reshape(shape)).to(torch.get_default_dtype()).contiguous()
