"""The wavelet transform of one block as a few dense matrix products, exact up to rounding.

Reflecting the borders, convolving on a periodic grid and subsampling are linear along each axis, and a sum of a few
products *vertical filter × horizontal filter* gives each wavelet: mirrored angles share them, and for L = 4 a pair
needs three, θ = 0 two, θ = −π/2 and φ one. So a group of wavelets is one matrix along the rows, then one along the
columns.

Memory layout of signals, everywhere between the input and the classifier:

    x   (H, W, parts, B, C)   parts = 2 for a complex signal (real, imaginary), 1 for a real one

The axis that a matrix acts on comes before the ones it leaves alone, so that the product along the rows is one large
multiplication, and that along the columns one for each row, both over contiguous memory. Parts come right after the
columns, so that a complex multiplication is part of the matrix and needs no pass of its own.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.models.wavelets import Octave, filter_bank, mirrored_angles

SMALLEST_TERM = 1e-8
"""Separable terms below this fraction of the largest are left out: below float32 rounding."""


def padded_size(size: int) -> int:
    """P = 2·(⌊(size + 2) / 2⌋ + 1), the period of the grid on which a side of `size` pixels is filtered."""
    return 2 * ((size + 2) // 2 + 1)


def output_size(size: int, octave: Octave) -> int:
    """Pixels that are left of a side of `size` pixels: P/2 − 2 with subsampling, P − 4 without."""
    padded = padded_size(size)
    return padded // 2 - 2 if octave.subsampling == 2 else padded - 4


def axis_matrix(kernel: NDArray[np.float64], size: int, subsampling: int) -> NDArray[np.float64]:
    """The matrix (size out, size in) that filters one axis: reflect to P, convolve with `kernel`, subsample."""
    period = len(kernel)
    before = (period - size) // 2
    reflect = np.pad(np.eye(size), ((before, period - size - before), (0, 0)), mode="reflect")
    positions = np.arange(period)
    kept = positions[::2][1:-1] if subsampling == 2 else positions[2:-2]
    return kernel[(kept[:, None] - positions) % period] @ reflect


def separable_terms(kernels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vertical filters v (R, P) and horizontal ones h (R, N, Q) with kernels[n] = Σ_r v[r] ⊗ h[r, n].

    Args:
        kernels: real filters (N, P, Q).
    """
    magnitude = np.abs(kernels).max(0)
    support = magnitude > np.finfo(np.float64).eps * magnitude.max()  # what lies outside is zero in double precision
    rows, columns = support.any(1).nonzero()[0], support.any(0).nonzero()[0]
    inside = kernels[:, rows][:, :, columns]
    u, singular, vh = np.linalg.svd(inside.transpose(1, 0, 2).reshape(len(rows), -1), full_matrices=False)
    rank = int((singular > SMALLEST_TERM * singular[0]).sum())
    count, height, width = kernels.shape
    vertical, horizontal = np.zeros((rank, height)), np.zeros((rank, count, width))
    vertical[:, rows] = u[:, :rank].T
    horizontal[:, :, columns] = (singular[:rank, None] * vh[:rank]).reshape(rank, count, -1)
    return vertical, horizontal


class SeparableFilters(nn.Module):
    """Filters a signal with a group of N real or complex kernels: (H, W, parts, B, C) → (H', W', N, parts', B, C).

    Real kernels keep the parts of the signal; complex ones give parts' = 2.
    """

    vertical: Tensor
    horizontal: Tensor

    def __init__(self, kernels: NDArray, height: int, width: int, octave: Octave, parts: int) -> None:
        super().__init__()
        step = octave.subsampling
        self.count = len(kernels)
        self.complex_kernels = np.iscomplexobj(kernels)
        self.parts, self.width = parts, width
        self.output = (output_size(height, octave), output_size(width, octave))
        planes = np.concatenate([kernels.real, kernels.imag]) if self.complex_kernels else kernels
        v, h = separable_terms(planes)
        vertical = np.stack([axis_matrix(kernel, height, step) for kernel in v], axis=1)  # (H', R, H)
        along_width = np.array(
            [[axis_matrix(kernel, width, step) for kernel in row] for row in h]
        )  # (R, planes, W', W)
        if self.complex_kernels:
            horizontal = _complex_product(along_width[:, : self.count], along_width[:, self.count :], parts)
        else:
            horizontal = along_width.transpose(2, 1, 0, 3)  # (W', N, R, W)
        rank = len(v)
        self.register_buffer("vertical", _constant(vertical.reshape(-1, height)), persistent=False)
        self.register_buffer(
            "horizontal", _constant(horizontal.reshape(-1, rank * width * self._inner)), persistent=False
        )

    @property
    def _inner(self) -> int:
        """Parts that the horizontal matrix mixes: with real kernels none, they are then like channels."""
        return self.parts if self.complex_kernels else 1

    def forward(self, x: Tensor) -> Tensor:
        height, _, parts, batch, channels = x.shape
        rows, columns = self.output
        vertical, horizontal = self.vertical.to(x.dtype), self.horizontal.to(x.dtype)
        x = vertical @ x.reshape(height, -1)  # (H'·R, W·parts·B·C)
        x = horizontal.expand(rows, -1, -1) @ x.view(rows, horizontal.shape[1], -1)
        return x.view(rows, columns, self.count, 2 if self.complex_kernels else parts, batch, channels)

    def multiply_adds(self, channels: int) -> int:
        """Real multiplications with an addition, for one image of `channels` (complex, where parts = 2) channels."""
        numbers = channels * self.parts
        along_height = self.vertical.numel() * self.width * numbers
        along_width = self.output[0] * self.horizontal.numel() * numbers // self._inner
        return along_height + along_width


class WaveletTransform(nn.Module):
    """φ*x and ψ_θ*x of one block, subsampled (step 1 of the block)."""

    def __init__(self, height: int, width: int, octave: Octave, angles: int, parts: int) -> None:
        super().__init__()
        bank = filter_bank(octave, angles, padded_size(height), padded_size(width))
        groups = mirrored_angles(angles)
        self.output = (output_size(height, octave), output_size(width, octave))
        self.low_pass = SeparableFilters(bank.phi[None], height, width, octave, parts)
        self.band_pass = nn.ModuleList(
            SeparableFilters(bank.psi[list(group)], height, width, octave, parts) for group in groups
        )
        self.angle_order = [k for group in groups for k in group]
        """The angle index k of each wavelet, in the order in which `forward` returns them."""

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """φ*x (H', W', 1, parts, B, C), and ψ*x in groups (H', W', K, 2, B, C) in the order of `angle_order`."""
        return self.low_pass(x), [filters(x) for filters in self.band_pass]

    def multiply_adds(self, channels: int) -> int:
        """Real multiplications with an addition, for one image."""
        groups = [self.low_pass, *self.band_pass]
        return sum(group.multiply_adds(channels) for group in groups if isinstance(group, SeparableFilters))


def _complex_product(real: NDArray, imaginary: NDArray, parts: int) -> NDArray:
    """Matrices (R, N, W', W) of real and imaginary kernels → one real matrix (W', N, 2, R, W, parts)."""
    rank, count, columns, width = real.shape
    matrix = np.zeros((columns, count, 2, rank, width, parts))
    re, im = (m.transpose(2, 1, 0, 3) for m in (real, imaginary))
    matrix[:, :, 0, :, :, 0] = re
    matrix[:, :, 1, :, :, 0] = im
    if parts == 2:
        matrix[:, :, 0, :, :, 1] = -im
        matrix[:, :, 1, :, :, 1] = re
    return matrix


def _constant(matrix: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(torch.get_default_dtype())
