"""The wavelet transform of one block as three real matrix products: Fourier along the rows, windows along the columns.

    x̂[ω, ·]    = Σ_h e^{−iωh} x[h, ·]                 a matrix along the rows
    ẑ_f[ω, w'] = Σ_w k_f[ω, w' − w] x̂[ω, w]           for each row frequency ω, a short kernel along the columns
    z_f[h', ·] = Σ_ω e^{iωh'} ẑ_f[ω, ·]               a matrix back, to the rows that are kept

k_f[ω, ·] is the filter f = φ, ψ_θ0 … ψ_θ(L−1) after a Fourier transform of its rows alone. Convolving along the rows is
then a multiplication, which the second product does on its way, and all 1 + L filters share the first one. Subsampling
saves work: a signal of every second row has the frequencies ω and ω + π added up, so the second product sums over
both, and the third is half as large. Transforming both axes would write a whole spectrum for each filter, and read it
again, of which subsampling keeps a quarter.

Large images are cut into tiles, each computed from a window that is wider by the reach of the filters, so that the cost
is in proportion to the pixels. Complex numbers are pairs of reals that the matrices mix. Layouts in memory, the axis
that moves least first:

    x   (H, parts, W, B, C)                a signal; parts = 2 (real, imaginary), or 1 for a real one
    z   (S, 2, T, 1 + L, M, N, B, C)       coefficients of all filters, in M × N tiles of S × T pixels

Each product sees its axis, with the parts, as rows, and everything behind as the columns of one large matrix.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.wavelets import Octave, filter_bank

ROWS, COLUMNS = 16, 8
"""Sides of a tile, about: larger ones share more of a window, but need longer sums."""
WHOLE = 32
"""Outputs up to which an axis is one tile, its reflected borders in the matrix: no window is copied then."""
SMALLEST_TAP = 1e-7
"""Where windows are cut, filters end at this fraction of their largest tap: float32 would round the rest away."""


def padded_size(size: int) -> int:
    """P = 2·(⌊(size + 2) / 2⌋ + 1), the period of the grid on which a side of `size` pixels is filtered."""
    return 2 * ((size + 2) // 2 + 1)


def output_size(size: int, octave: Octave) -> int:
    """Pixels that are left of a side of `size` pixels: P/2 − 2 with subsampling, P − 4 without."""
    padded = padded_size(size)
    return padded // 2 - 2 if octave.subsampling == 2 else padded - 4


class WaveletTransform(nn.Module):
    """φ*x and ψ_θ*x of one block, subsampled (step 1 of the block).

    Maps x (H, parts, W, B, C) to z (S, 2, T, 1 + L, M, N, B, C); filter 0 is φ, and filter 1 + k is ψ at angle k.
    """

    to_frequencies: Tensor
    kernels: Tensor
    from_frequencies: Tensor

    def __init__(self, height: int, width: int, octave: Octave, angles: int, parts: int) -> None:
        super().__init__()
        step = octave.subsampling
        self.parts = parts
        bank = filter_bank(octave, angles, padded_size(height), padded_size(width))
        kernels = np.concatenate([bank.phi[None], bank.psi])  # (1 + L, P, Q)
        self.rows = Axis(height, step, np.abs(kernels).max((0, 2)), ROWS)
        self.columns = Axis(width, step, np.abs(kernels).max((0, 1)), COLUMNS)
        self.output, self.filters, self.width = (self.rows.output, self.columns.output), 1 + angles, width
        kernels = self.columns.on_grid(self.rows.on_grid(kernels, 1), 2)

        period = self.rows.period
        self.frequencies = period // step
        every = np.arange(period).reshape(step, -1).T.reshape(-1)  # those that subsampling adds up, side by side
        forward = self.rows.from_pixels(_fourier(every, np.arange(period), period))  # (ω, h)
        back = _fourier(self.rows.kept // step, np.arange(self.frequencies), self.frequencies).conj() / period
        mixed = np.fft.fft(kernels, axis=1)[:, every]  # k_f[ω, ·]
        lag = (self.columns.kept[:, None] - np.arange(self.columns.period)) % self.columns.period
        along = self.columns.from_pixels(mixed[..., lag])  # (f, ω, t, w)
        along = along.reshape(self.filters, self.frequencies, step, *along.shape[2:]).transpose(1, 3, 0, 2, 4)

        to_frequencies = _as_real(forward, parts).transpose(2, 0, 3, 1)  # (ω, part, h, part)
        by_frequency = _as_real(along, 2).transpose(2, 0, 3, 4, 5, 1, 6)  # (ω, part, t, f, alias, part, w)
        from_frequencies = _as_real(back, 2).transpose(2, 0, 3, 1)  # (s, part, ω, part)
        outputs = 2 * self.columns.tile * self.filters
        self.register_buffer("to_frequencies", _constant(to_frequencies, 2 * period, -1), persistent=False)
        self.register_buffer("kernels", _constant(by_frequency, self.frequencies, outputs, -1), persistent=False)
        self.register_buffer("from_frequencies", _constant(from_frequencies, 2 * self.rows.tile, -1), persistent=False)
        # Rows are copied with their parts, (window, part, M); columns from each tile of rows, (window, M, N).
        rows = parts * self.rows.pixels()[:, None] + np.arange(parts)[:, None]
        columns = self.columns.pixels()[:, None] + width * np.arange(self.rows.tiles)[:, None]
        self.row_windows = GatherWindows(rows.reshape(-1), height * parts)
        self.column_windows = GatherWindows(columns.reshape(-1), self.rows.tiles * width)

    def forward(self, x: Tensor) -> Tensor:
        height, parts, width, batch, channels = x.shape
        tiles = self.rows.tiles, self.columns.tiles
        x = self.row_windows(x.reshape(1, height * parts, -1))  # (1, window·part·M, W·B·C)
        x = _ToFrequencies.apply(x.view(self.to_frequencies.shape[1], -1), self.to_frequencies, parts)
        # now (ω·alias·part, M·W·B·C)
        x = self.column_windows(x.view(2 * self.rows.period, tiles[0] * width, -1))  # (…, window·M·N, B·C)
        x = self.kernels.to(x.dtype) @ x.view(self.frequencies, self.kernels.shape[2], -1)  # (ω, part·T·f, M·N·B·C)
        x = self.from_frequencies.to(x.dtype) @ x.view(2 * self.frequencies, -1)
        z = x.view(self.rows.tile, 2, self.columns.tile, self.filters, *tiles, batch, channels)
        if (self.rows.tile * tiles[0], self.columns.tile * tiles[1]) == self.output:
            return z
        # The last tiles are not full: a copy without the surplus, with rows in one tile and each column in its own.
        z = z.permute(4, 0, 1, 3, 5, 2, 6, 7).flatten(0, 1).flatten(3, 4)
        return z[: self.output[0], :, :, : self.output[1]].contiguous()[:, :, None, :, None]

    def multiply_adds(self, channels: int) -> int:
        """Real multiplications with an addition that `forward` does, for one image of `channels` channels."""
        tiles = self.rows.tiles * self.columns.tiles
        to_frequencies = self.to_frequencies.numel() * self.rows.tiles * self.width
        from_frequencies = self.from_frequencies.numel() * self.columns.tile * self.filters * tiles
        return channels * (to_frequencies + self.kernels.numel() * tiles + from_frequencies)

    def necessary_multiply_adds(self, channels: int) -> int:
        """Those of filtering with fast Fourier transforms of the padded grid, whatever `forward` does.

        A transform of N complex numbers takes N/2·log₂ N complex products, that is 2·N·log₂ N real ones; half of that
        if the numbers are real. Each channel has one transform of its padded grid of N pixels, 2·N products with the
        spectrum of each filter, which is real because ψ(−u) is the conjugate of ψ(u), and for each filter a transform
        back of the N/step² frequencies that subsampling leaves. Of a real x, φ*x is real and counts as half a filter.
        """
        size = self._padded_pixels()
        kept = size // (self.rows.step * self.columns.step)
        forward = self.parts * size * math.log2(size)
        filters = self.filters - 1 + self.parts / 2
        return round(channels * (forward + filters * (2 * size + 2 * kept * math.log2(kept))))

    def fixed_numbers(self) -> int:
        """Numbers in the filters of the formula, on the padded grid: φ is real, and each ψ_θ complex, two a pixel.

        The matrices that `forward` multiplies with are made of them, and hold more.
        """
        return (2 * self.filters - 1) * self._padded_pixels()

    def _padded_pixels(self) -> int:
        return padded_size(self.rows.size) * padded_size(self.columns.size)


class Axis:
    """How one axis of `size` pixels is cut into tiles; NumPy only.

    `tiles` tiles of `tile` outputs each are computed on a circular grid of `period` pixels, at its positions `kept`.
    For a small axis this is the whole padded axis, and `from_pixels` puts the reflected borders into a matrix; for a
    large one it is a window, which has copies of the reflected pixels in it.

    Args:
        magnitude: (P,) largest tap of the filters at each lag along this axis.
        tile: about how many outputs a tile should have.
    """

    def __init__(self, size: int, step: int, magnitude: NDArray[np.float64], tile: int) -> None:
        self.size, self.step, self.period = size, step, padded_size(size)
        kept = np.arange(0, self.period, 2)[1:-1] if step == 2 else np.arange(2, self.period - 2)
        signed = (np.arange(self.period) + self.period // 2) % self.period - self.period // 2
        self._reach = int(np.abs(signed)[magnitude > SMALLEST_TAP * magnitude.max()].max())
        self.output = len(kept)
        self.whole = self.output <= WHOLE or 2 * self._reach >= self.period  # no window is wider than the axis
        self.tile, self.tiles, self.kept = self.output, 1, kept
        if not self.whole:
            self.tile = _tile(self.output, tile)
            self.tiles = -(-self.output // self.tile)
            first = self._reach + self._reach % step  # subsampling keeps even positions, of a window as of the whole
            window = first + step * (self.tile - 1) + self._reach + 1
            self._start, self._padded = kept[0] - first, self.period
            self.period, self.kept = window + window % step, first + step * np.arange(self.tile)

    def on_grid(self, kernels: NDArray, axis: int) -> NDArray:
        """Kernels on the padded axis → on the grid of a tile."""
        if self.whole:
            return kernels
        lags = np.arange(-self._reach, self._reach + 1)
        moved = np.moveaxis(kernels, axis, 0)
        result = np.zeros((self.period, *moved.shape[1:]), kernels.dtype)
        result[lags % self.period] = moved[lags % self._padded]
        return np.moveaxis(result, 0, axis)

    def from_pixels(self, matrix: NDArray) -> NDArray:
        """A matrix (…, period) for a padded axis → one (…, size) for its pixels; for a window, itself."""
        return matrix @ _reflection(self.size) if self.whole else matrix

    def pixels(self) -> NDArray[np.int64]:
        """(period, tiles): the pixel at each place of the windows; all of them, in order, where there is one tile."""
        if self.whole:
            return np.arange(self.size)[:, None]
        positions = self._start + np.arange(self.period)[:, None] + self.step * self.tile * np.arange(self.tiles)
        return _reflection(self.size).argmax(1)[positions % self._padded]


class GatherWindows(nn.Module):
    """Copies entries along the middle axis: (A, size, C) → (A, len(index), C), and a backward pass in a fixed order."""

    index: Tensor
    sources: Tensor
    weights: Tensor

    def __init__(self, index: NDArray[np.int64], size: int) -> None:
        super().__init__()
        self.trivial = np.array_equal(index, np.arange(size))
        if self.trivial:
            return
        # For each entry the places that it was copied to, as many rounds as the most copied one needs.
        order = np.argsort(index, kind="stable")
        starts, counts = np.searchsorted(index[order], np.arange(size)), np.bincount(index, minlength=size)
        rounds = np.arange(counts.max())[:, None]
        used = rounds < counts
        self.register_buffer("index", torch.from_numpy(index), persistent=False)
        self.register_buffer(
            "sources", torch.from_numpy(np.where(used, order[np.where(used, starts + rounds, 0)], 0)), persistent=False
        )
        self.register_buffer("weights", _constant(used.astype(np.float64), *used.shape, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.trivial else _Copies.apply(x, self.index, self.sources, self.weights)


class _Copies(torch.autograd.Function):
    """index_select; its own backward pass would add in any order on a GPU, and one entry after the other on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(sources, weights.to(x.dtype))
        return x.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sources, weights = ctx.saved_tensors
        result = gradients[0].index_select(1, sources[0]) * weights[0]
        for places, weight in zip(sources[1:], weights[1:], strict=True):
            result.addcmul_(gradients[0].index_select(1, places), weight)
        return result, None, None, None


class _ToFrequencies(torch.autograd.Function):
    """matrix @ x, for the matrix of a Fourier transform along the rows of x, which hold `parts` numbers each.

    The mean goes around the matrix: of a constant, all frequencies but ω = 0 are sums that cancel. Rounded, they would
    leak into every band-pass coefficient of a column alike, which no average over positions removes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, parts: int) -> Tensor:
        ctx.save_for_backward(matrix)
        pixels = x.view(-1, parts, x.shape[1])
        mean = pixels.mean(0)
        spectrum = matrix.to(x.dtype) @ (pixels - mean).view(x.shape)
        spectrum[:parts] += len(matrix) // 2 * mean
        return spectrum

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (matrix,) = ctx.saved_tensors
        return matrix.to(gradients[0].dtype).T @ gradients[0], None, None


def _tile(size: int, about: int) -> int:
    """The divisor of `size` nearest to `about`, so that no tile is partly empty; `about` itself if none is near."""
    near = [tile for tile in range(-(-about // 2), 2 * about) if size % tile == 0]
    return min(near, key=lambda tile: abs(tile - about), default=about)


def _fourier(frequencies: NDArray, positions: NDArray, period: int) -> NDArray[np.complex128]:
    """e^{−2πi·frequency·position/period}, (frequencies, positions)."""
    return np.exp(-2j * np.pi * (np.outer(frequencies, positions) % period) / period)


def _reflection(size: int) -> NDArray[np.float64]:
    """The matrix (P, size) that pads a side by reflection, without repeating the pixel at the border."""
    period = padded_size(size)
    before = (period - size) // 2
    return np.pad(np.eye(size), ((before, period - size - before), (0, 0)), mode="reflect")


def _as_real(matrix: NDArray[np.complex128], parts: int) -> NDArray[np.float64]:
    """A complex matrix (…) as one of reals (2, parts, …) that maps `parts` of its input to the two of its output."""
    re, im = matrix.real, matrix.imag
    return np.stack([np.stack([re, -im]), np.stack([im, re])])[:, :parts]


def _constant(matrix: NDArray[np.float64], *shape: int) -> Tensor:
    return torch.from_numpy(matrix.reshape(shape)).to(torch.get_default_dtype()).contiguous()
