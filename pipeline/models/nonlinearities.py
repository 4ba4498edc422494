"""ρ: the non-linearities of a block, each a pure function of complex coefficients z = (real, imaginary).

    z   (S, 2, T, K, M, N, B, C)   real and imaginary parts of K filters, as `WaveletTransform` lays them out
    a   (K, 1, 1, 1, C)            gain, one real number for each channel, where the operator has one
    b   (K, 1, 1, 1, C)            bias, likewise

Phase collapse returns a real signal (S, 1, T, K, M, N, B, C); the amplitude reductions return f(|z|)·z, which has the
phase of z. All have a finite derivative at z = 0, where the modulus itself has none: that of the modulus is taken as 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.models.fused import modulus

EPSILON = 1e-6
"""Added to |z| where it divides."""


def collapse(z: Tensor) -> Tensor:
    """Phase collapse, |z|: real."""
    return modulus(z)


def identity(z: Tensor) -> Tensor:
    """z itself: a network without a non-linearity between its normalizations, for contrast."""
    return z


def threshold(z: Tensor, bias: Tensor) -> Tensor:
    """Complex soft-thresholding, max(1 − b/|z|, 0)·z."""
    return torch.relu(1 - bias / (modulus(z) + EPSILON)) * z


def sigmoid(z: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Amplitude sigmoid, σ(a|z| + b)/|z|·z."""
    r = modulus(z)
    return torch.sigmoid(gain * r + bias) / (r + EPSILON) * z


def tanh(z: Tensor) -> Tensor:
    """Amplitude tanh, tanh(|z|)/|z|·z."""
    r = modulus(z)
    return torch.tanh(r) / (r + EPSILON) * z


def unit_modulus(z: Tensor) -> Tensor:
    """Amplitude collapse, z/|z|: keeps the phase and nothing else."""
    return z / (modulus(z) + EPSILON)


def power(z: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Amplitude power, t/(1+t)·z/|z| with t = e^b·|z|^a."""
    r = modulus(z)
    return torch.sigmoid(gain * torch.log(r) + bias) / (r + EPSILON) * z  # t/(1+t) = σ(log t), which cannot overflow


OPERATORS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (collapse, threshold, sigmoid, tanh, unit_modulus, power, identity)
}

PARAMETERS: dict[str, dict[str, float]] = {
    "collapse": {},
    "threshold": {"bias": 0.1},
    "sigmoid": {"gain": 1.0, "bias": 0.0},
    "tanh": {},
    "unit_modulus": {},
    "power": {"gain": 1.0, "bias": 0.0},
    "identity": {},
}
"""The parameters of each operator, learned or fixed, and where they start."""
