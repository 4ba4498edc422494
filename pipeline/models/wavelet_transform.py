"""The wavelet transform of one block as three real matrix products: Fourier along the rows, windows along the columns.

    x̂[ω, ·]    = Σ_h e^{−iωh} x[h, ·]                 a matrix along the rows
    ẑ_f[ω, w'] = Σ_w k_f[ω, w' − w] x̂[ω, w]           for each row frequency ω, a short kernel along the columns
    z_f[h', ·] = Σ_ω e^{iωh'} ẑ_f[ω, ·]               a matrix back, to the rows that are kept

k_f[ω, ·] is the filter f = φ, ψ_θ0 … ψ_θ(L−1) after a Fourier transform of its rows alone. A convolution along the rows
then is a multiplication, part of the second product, and all 1 + L filters share the first product. Subsampling saves
work: a signal of every second row has the sums of the frequencies ω and ω + π, so the second product sums over both,
and the third is half as large. A Fourier transform of both axes would write and read a whole spectrum for each filter,
of which subsampling keeps a quarter.

Large images are cut into tiles (:mod:`pipeline.models.tiling`). Complex numbers are pairs of reals that the matrices
mix. Suffixes of tensors name their axes, the slowest first:

    B    images of a batch                     C    channels
    H W  rows and columns of pixels            P    real and imaginary part (one entry where a signal is real)
    M N  tiles along rows and columns          S T  rows and columns of pixels in a tile
    F    filters: φ, then ψ at L angles, 1 + L

    x_HPWBC        a signal
    z_SPTFMNBC     coefficients of all filters, in M × N tiles of S × T pixels

Each product takes its axis, with the parts, as rows, and all axes behind it as the columns of one large matrix.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.fused import to_frequencies
from pipeline.models.tiling import CPU_TILES, Axis, GatherWindows, Tiles, constant, padded_size
from pipeline.models.wavelets import Octave, filter_bank


def output_size(size: int, octave: Octave) -> int:
    """Pixels that are left of a side of `size` pixels: P/2 − 2 with subsampling, P − 4 without."""
    padded = padded_size(size)
    return padded // 2 - 2 if octave.subsampling == 2 else padded - 4


class WaveletTransform(nn.Module):
    """φ*x and ψ_θ*x of one block, subsampled (step 1 of the block).

    Maps x (H, P, W, B, C) to z (S, 2, T, F, M, N, B, C); filter 0 is φ, and filter 1 + k is ψ at angle k.

    Args:
        height, width: H and W of x.
        octave: the filters, and whether every second pixel is left out.
        angles: L, the number of wavelet angles.
        parts: P, 2 for a complex x, 1 for a real one.
        tiles: sides of the tiles, by the device that computes.
    """

    to_frequencies: Tensor
    kernels: Tensor
    from_frequencies: Tensor

    def __init__(
        self, height: int, width: int, octave: Octave, angles: int, parts: int, tiles: Tiles = CPU_TILES
    ) -> None:
        super().__init__()
        step = octave.subsampling
        self.parts = parts
        bank = filter_bank(octave, angles, padded_size(height), padded_size(width))
        kernels = np.concatenate([bank.phi[None], bank.psi])  # (F, rows, columns) of the padded grid
        self.rows = Axis(height, step, np.abs(kernels).max((0, 2)), tiles.rows, tiles.whole)
        self.columns = Axis(width, step, np.abs(kernels).max((0, 1)), tiles.columns, tiles.whole)
        self.output, self.filters, self.width = (self.rows.output, self.columns.output), 1 + angles, width
        kernels = self.columns.on_grid(self.rows.on_grid(kernels, 1), 2)

        period = self.rows.period
        self.frequencies = period // step
        every = np.arange(period).reshape(step, -1).T.reshape(-1)  # ω and ω + π, which subsampling adds, side by side
        forward = self.rows.from_pixels(_fourier(every, np.arange(period), period))  # (ω, h)
        back = _fourier(self.rows.kept // step, np.arange(self.frequencies), self.frequencies).conj() / period
        mixed = np.fft.fft(kernels, axis=1)[:, every]  # k_f[ω, ·]
        lag = (self.columns.kept[:, None] - np.arange(self.columns.period)) % self.columns.period
        along = self.columns.from_pixels(mixed[..., lag])  # (f, ω, t, w)
        along = along.reshape(self.filters, self.frequencies, step, *along.shape[2:]).transpose(1, 3, 0, 2, 4)

        by_row = _as_real(forward, parts).transpose(2, 0, 3, 1)  # (ω, part, h, part)
        by_frequency = _as_real(along, 2).transpose(2, 0, 3, 4, 5, 1, 6)  # (ω, part, t, f, alias, part, w)
        to_row = _as_real(back, 2).transpose(2, 0, 3, 1)  # (s, part, ω, part)
        outputs = 2 * self.columns.tile * self.filters
        self._casts: dict[str, Tensor] = {}
        self.register_buffer("to_frequencies", constant(by_row, 2 * period, -1), persistent=False)
        self.register_buffer("kernels", constant(by_frequency, self.frequencies, outputs, -1), persistent=False)
        self.register_buffer("from_frequencies", constant(to_row, 2 * self.rows.tile, -1), persistent=False)
        # Rows are copied with their parts, (window, part, M); columns from each tile of rows, (window, M, N).
        rows = parts * self.rows.pixels()[:, None] + np.arange(parts)[:, None]
        columns = self.columns.pixels()[:, None] + width * np.arange(self.rows.tiles)[:, None]
        self.row_windows = GatherWindows(rows.reshape(-1), height * parts)
        self.column_windows = GatherWindows(columns.reshape(-1), self.rows.tiles * width)

    def forward(self, x_HPWBC: Tensor) -> Tensor:
        height, parts, width, batch, channels = x_HPWBC.shape
        tiles = self.rows.tiles, self.columns.tiles
        windows = self.row_windows(x_HPWBC.reshape(1, height * parts, -1))  # (1, window·P·M, W·B·C)
        # x̂[ω, ·] = Σ_h e^{−iωh} x[h, ·]: (ω·alias·2, M·W·B·C)
        matrix = self._constant("to_frequencies", windows.dtype)
        spectrum = to_frequencies(windows.view(matrix.shape[1], -1), matrix, parts)
        # (ω·alias·2, window·M·N, B·C)
        spectrum = self.column_windows(spectrum.view(2 * self.rows.period, tiles[0] * width, -1))
        # ẑ_f[ω, w'] = Σ_w k_f[ω, w' − w] x̂[ω, w]: (ω, 2·T·F, M·N·B·C)
        filtered = self._constant("kernels", spectrum.dtype) @ spectrum.view(
            self.frequencies, self.kernels.shape[2], -1
        )
        # z_f[h', ·] = Σ_ω e^{iωh'} ẑ_f[ω, ·]: (S·2, T·F·M·N·B·C)
        filtered = self._constant("from_frequencies", filtered.dtype) @ filtered.view(2 * self.frequencies, -1)
        z_SPTFMNBC = filtered.view(self.rows.tile, 2, self.columns.tile, self.filters, *tiles, batch, channels)
        if (self.rows.tile * tiles[0], self.columns.tile * tiles[1]) == self.output:
            return z_SPTFMNBC
        # The last tiles are not full: a copy without the surplus, with rows in one tile and each column in its own.
        z_HPFWBC = z_SPTFMNBC.permute(4, 0, 1, 3, 5, 2, 6, 7).flatten(0, 1).flatten(3, 4)
        return z_HPFWBC[: self.output[0], :, :, : self.output[1]].contiguous()[:, :, None, :, None]

    def _constant(self, name: str, dtype: torch.dtype) -> Tensor:
        """The matrix of this name in the precision that it multiplies in, made once and not in each step."""
        constant: Tensor = getattr(self, name)
        if constant.dtype == dtype or torch.compiler.is_compiling():
            return constant.to(dtype)
        cast = self._casts.get(name)
        if cast is None or (cast.dtype, cast.device) != (dtype, constant.device):
            with torch.inference_mode(False):  # training may use it, too
                cast = self._casts[name] = constant.to(dtype)
        return cast

    def multiply_adds(self, channels: int) -> int:
        """Real multiply-adds of `forward`, for one image of `channels` channels."""
        tiles = self.rows.tiles * self.columns.tiles
        to_frequencies = self.to_frequencies.numel() * self.rows.tiles * self.width
        from_frequencies = self.from_frequencies.numel() * self.columns.tile * self.filters * tiles
        return channels * (to_frequencies + self.kernels.numel() * tiles + from_frequencies)

    def necessary_multiply_adds(self, channels: int) -> int:
        """Real multiply-adds of filtering one image by fast Fourier transforms of the padded grid, unlike `forward`.

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
        """Numbers in the filters of the formula, on the padded grid: one per pixel for φ (real), two for each ψ_θ.

        The matrices of `forward` are computed from them, and are larger.
        """
        return (2 * self.filters - 1) * self._padded_pixels()

    def _padded_pixels(self) -> int:
        return padded_size(self.rows.size) * padded_size(self.columns.size)


def _fourier(frequencies: NDArray, positions: NDArray, period: int) -> NDArray[np.complex128]:
    """e^{−2πi·frequency·position/period}, (frequencies, positions)."""
    return np.exp(-2j * np.pi * (np.outer(frequencies, positions) % period) / period)


def _as_real(matrix: NDArray[np.complex128], parts: int) -> NDArray[np.float64]:
    """A complex matrix (…) as one of reals (2, parts, …) that maps `parts` of its input to the two of its output."""
    re, im = matrix.real, matrix.imag
    return np.stack([np.stack([re, -im]), np.stack([im, re])])[:, :parts]
