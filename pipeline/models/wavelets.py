"""The fixed filters: one low-pass φ and L band-pass wavelets ψ_θ, as arrays of numbers on a periodic grid.

Notation, after Guth, Zarka and Mallat, "Phase Collapse in Neural Networks" (ICLR 2022):

    u       position (row, column), in pixels; u∥ along the angle θ and u⊥ across it
    σ, s    width of the Gaussian envelope along θ, and its slant: the width across θ is σ/s
    ξ       center frequency, in radians a pixel
    L, θ_k  number of angles, and θ_k = (⌊L/2⌋ − 1 − k)·π/L for k = 0 … L−1

The filters are computed with NumPy in double precision, once when a network is built. Shapes: P × Q are the rows and
columns of the grid.
"""

from __future__ import annotations

import math
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PERIODS = 2
"""Filters are summed over their translates by −PERIODS … PERIODS periods of the grid, which makes them periodic."""


class Octave(Enum):
    """The part of an octave that the filters of a block cover."""

    FULL = "full"
    FIRST_HALF = "first_half"
    SECOND_HALF = "second_half"

    @property
    def subsampling(self) -> int:
        """Distance between the samples that the block keeps, in pixels."""
        return 1 if self is Octave.FIRST_HALF else 2


class FilterBank(NamedTuple):
    """Periodic filters, origin at [0, 0]: `phi` (P, Q) real and `psi` (L, P, Q) complex."""

    phi: NDArray[np.float64]
    psi: NDArray[np.complex128]


def octaves_of_blocks(blocks: int, first_factorized_block: int) -> list[Octave]:
    """The octave of each block: full before `first_factorized_block`, then first and second halves in turn."""
    halves = (Octave.FIRST_HALF, Octave.SECOND_HALF)
    return [
        Octave.FULL if block < first_factorized_block else halves[(block - first_factorized_block) % 2]
        for block in range(blocks)
    ]


def angle(k: int, angles: int) -> float:
    """θ_k, in radians."""
    return (angles // 2 - 1 - k) * math.pi / angles


@lru_cache(maxsize=64)
def filter_bank(octave: Octave, angles: int, height: int, width: int) -> FilterBank:
    """φ and ψ_θ of one block, on a periodic grid of `height` × `width` pixels."""
    slant = 4 / angles
    phi_sigma = 0.8 if octave is Octave.FULL else 0.8 / math.sqrt(2)
    sigma, xi = 0.8, 3 * math.pi / 4
    if octave is Octave.SECOND_HALF:
        sigma, xi = 0.8 * math.sqrt(1.5), math.pi / math.sqrt(2)
        slant = math.sqrt(3 * slant**2 / (4 - slant**2))
    grid = _grid(height, width)
    phi = _periodize(gaussian(*rotate(grid, 0.0), phi_sigma, 1.0), height, width)
    psi = np.stack([wavelet(grid, angle(k, angles), sigma, slant, xi, height, width) for k in range(angles)])
    return FilterBank(phi, psi)


def gaussian(
    along: NDArray[np.float64], across: NDArray[np.float64], sigma: float, slant: float
) -> NDArray[np.float64]:
    """g(u) = exp(−(u∥² + s² u⊥²) / 2σ²) / (2πσ²/s).

    The code published with the paper writes 3.1415 for the π of this factor. Standardization removes the factor;
    using the same one keeps the numbers comparable.
    """
    return np.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2)) / (2 * 3.1415 * sigma**2 / slant)


def rotate(grid: tuple[NDArray[np.float64], NDArray[np.float64]], theta: float) -> tuple[NDArray, NDArray]:
    """Coordinates (u∥, u⊥) of the grid's (row, column)."""
    row, column = grid
    return row * math.cos(theta) + column * math.sin(theta), column * math.cos(theta) - row * math.sin(theta)


def wavelet(
    grid: tuple[NDArray[np.float64], NDArray[np.float64]],
    theta: float,
    sigma: float,
    slant: float,
    xi: float,
    height: int,
    width: int,
) -> NDArray[np.complex128]:
    """ψ_θ(u) = g(u)·(e^{iξ u∥} − β), periodic, with β such that it sums to zero."""
    along, across = rotate(grid, theta)
    envelope = gaussian(along, across, sigma, slant)
    wave = envelope * np.exp(1j * xi * along)
    beta = wave.sum() / envelope.sum()
    return _periodize(wave - beta * envelope, height, width)


def _grid(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.arange(-PERIODS * height, (PERIODS + 1) * height, dtype=np.float64)
    columns = np.arange(-PERIODS * width, (PERIODS + 1) * width, dtype=np.float64)
    return rows[:, None], columns[None, :]


def _periodize(values: NDArray, height: int, width: int) -> NDArray:
    copies = 2 * PERIODS + 1
    return values.reshape(copies, height, copies, width).sum(axis=(0, 2))
