"""A second, plain implementation of the network, in NumPy's and torch's double precision, complex numbers and FFTs.

It shares no code with `pipeline.models`: filters are evaluated pixel by pixel from the formula, convolutions are
products of Fourier transforms, and weights are complex matrices. It is slow and meant to be read beside the paper.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DTYPE = torch.complex128


def gabor(size: int, theta: float, sigma: float, slant: float, xi: float) -> Tensor:
    """Σ over periods of g(u)·e^{iξ u∥} on a grid of `size`², origin at [0, 0]."""
    result = torch.zeros(size, size, dtype=DTYPE)
    for row in range(size):
        for column in range(size):
            total = 0j
            for i in range(-2, 3):
                for j in range(-2, 3):
                    y, x = row + i * size, column + j * size
                    along = y * math.cos(theta) + x * math.sin(theta)
                    across = -y * math.sin(theta) + x * math.cos(theta)
                    exponent = -(along**2 + slant**2 * across**2) / (2 * sigma**2)
                    if exponent > -745:
                        total += math.exp(exponent) * cmath.exp(1j * xi * along)
            result[row, column] = total / (2 * 3.1415 * sigma**2 / slant)
    return result


def filters(size: int, angles: int, kind: str) -> tuple[Tensor, Tensor]:
    """φ (P, P) and ψ (L, P, P) of a block of `kind` full, first or second."""
    s = 4 / angles
    low = gabor(size, 0.0, 0.8 if kind == "full" else 0.8 / 2**0.5, 1.0, 0.0)
    sigma, xi = 0.8, 0.75 * math.pi
    if kind == "second":
        sigma, xi, s = 0.8 * 1.5**0.5, math.pi / 2**0.5, (3 * s * s / (4 - s * s)) ** 0.5
    band = []
    for k in range(angles):
        theta = (angles // 2 - 1 - k) * math.pi / angles
        wave, envelope = gabor(size, theta, sigma, s, xi), gabor(size, theta, sigma, s, 0.0)
        band.append(wave - wave.sum() / envelope.sum() * envelope)
    return low, torch.stack(band)


def block_kind(number: int, first_factorized_block: int) -> str:
    if number < first_factorized_block:
        return "full"
    return ["first", "second"][(number - first_factorized_block) % 2]


def wavelet_transform(x: Tensor, angles: int, kind: str) -> tuple[Tensor, Tensor]:
    """Step 1: x (B, C, H, H) complex → φ*x (B, C, H', H') and ψ*x (B, C·L, H', H')."""
    size = x.shape[-1]
    period = 2 * ((size + 2) // 2 + 1)
    before = (period - size) // 2
    after = period - size - before
    index = [abs(i) if i < size else 2 * (size - 1) - i for i in range(-before, size + after)]
    padded = x[..., index, :][..., index]
    low, band = filters(period, angles, kind)
    spectrum = torch.fft.fft2(padded)
    filtered_low = torch.fft.ifft2(spectrum * torch.fft.fft2(low))
    filtered_band = torch.fft.ifft2(spectrum[:, :, None] * torch.fft.fft2(band)).flatten(1, 2)

    def cut(z: Tensor) -> Tensor:
        return z[..., 2:-2, 2:-2] if kind == "first" else z[..., ::2, ::2][..., 1:-1, 1:-1]

    return cut(filtered_low), cut(filtered_band)


def rho(name: str, gain: Tensor | None = None, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """Step 2, on complex z (B, C, H, W); gain and bias (C,)."""
    a = gain[:, None, None] if gain is not None else None
    b = bias[:, None, None] if bias is not None else None

    def power(z: Tensor) -> Tensor:
        t = torch.exp(b) * abs(z) ** a
        return t / ((1 + t) * (abs(z) + 1e-6)) * z

    return {
        "collapse": lambda z: abs(z).to(DTYPE),
        "threshold": lambda z: torch.clamp(1 - b / (abs(z) + 1e-6), min=0) * z,
        "sigmoid": lambda z: torch.sigmoid(a * abs(z) + b) / (abs(z) + 1e-6) * z,
        "tanh": lambda z: torch.tanh(abs(z)) / (abs(z) + 1e-6) * z,
        "unit_modulus": lambda z: z / (abs(z) + 1e-6),
        "power": power,
        "identity": lambda z: z,
    }[name]


def standardize(z: Tensor) -> Tensor:
    """Step 3 in training mode, with the batch's mean and (biased) variance."""
    mean = z.mean((0, 2, 3), keepdim=True)
    variance = (abs(z - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (z - mean) / torch.sqrt(1e-5 + variance)


def block(
    x: Tensor,
    weight: Tensor,
    angles: int,
    kind: str,
    skip: bool,
    nonlinearity: Callable[[Tensor], Tensor],
    *,
    standardized: bool = True,
    normalized: bool = True,
) -> Tensor:
    """Steps 1 to 5, in training mode: x (B, C, H, W) → output (B, C', H', W')."""
    low, band = wavelet_transform(x, angles, kind)
    both = torch.cat([low, band], dim=1)
    features = torch.cat([both, nonlinearity(both)], dim=1) if skip else torch.cat([low, nonlinearity(band)], dim=1)
    y = torch.einsum("oi,bihw->bohw", weight, standardize(features) if standardized else features)
    return y / torch.sqrt((abs(y) ** 2).sum(1, keepdim=True)) if normalized else y


class Classifier(NamedTuple):
    """Arguments of `classify`; None for a part that a classifier does not have."""

    normalized: bool
    scale: Tensor | None
    shift: Tensor | None
    weight: Tensor
    bias: Tensor | None
    pooled: bool


def classify(x: Tensor, classifier: Classifier) -> Tensor:
    """Interleaved parts, batch normalization in training mode, linear map: (B, C, H, W) → (B, classes)."""
    parts = torch.stack([x.real, x.imag], dim=2).flatten(1, 2)
    if classifier.normalized:
        mean = parts.mean((0, 2, 3), keepdim=True)
        variance = ((parts - mean) ** 2).mean((0, 2, 3), keepdim=True)
        parts = (parts - mean) / torch.sqrt(variance + 1e-5)
    if classifier.scale is not None and classifier.shift is not None:
        parts = parts * classifier.scale[:, None, None] + classifier.shift[:, None, None]
    logits = (parts.mean((2, 3)) if classifier.pooled else parts.flatten(1)) @ classifier.weight.T
    return logits if classifier.bias is None else logits + classifier.bias


def network(
    images: Tensor,
    weights: Sequence[Tensor],
    *,
    angles: int,
    first_factorized_block: int,
    skip: bool,
    nonlinearities: Sequence[Callable[[Tensor], Tensor]],
    classifier: Classifier,
    standardized: bool = True,
    normalized: bool = True,
) -> Tensor:
    """Images (B, 3, H, H) → logits, in training mode."""
    x = images.to(DTYPE)
    for number, (weight, nonlinearity) in enumerate(zip(weights, nonlinearities, strict=True)):
        kind = block_kind(number, first_factorized_block)
        x = block(x, weight, angles, kind, skip, nonlinearity, standardized=standardized, normalized=normalized)
    return classify(x, classifier)
