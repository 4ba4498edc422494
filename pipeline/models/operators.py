"""ρ: the non-linearities of a block, each a pure function of complex coefficients z = (real, imaginary).

    z   (…, 2, B, C)   real and imaginary parts, then images and channels
    a   (…, 1, 1, C)   gain, one real number for each channel, where the operator has one
    b   (…, 1, 1, C)   bias, likewise

Phase collapse returns a real signal (…, 1, B, C); the amplitude reductions return f(|z|)·z, which has the phase of z.
All have a finite derivative at z = 0, where the modulus itself has none: that of the modulus is taken as 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EPSILON = 1e-6
"""Added to |z| where it divides."""


class _Modulus(torch.autograd.Function):
    """|z| over the parts axis, with derivative z/|z|, and 0 at z = 0."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        real, imaginary = z[..., :1, :, :], z[..., 1:, :, :]
        r = torch.addcmul(real.square(), imaginary, imaginary).sqrt_()
        ctx.save_for_backward(z, r)
        return r

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        z, r = ctx.saved_tensors
        return (gradients[0] / r.clamp_min(torch.finfo(r.dtype).tiny)) * z


def modulus(z: Tensor) -> Tensor:
    """|z|: (…, 2, B, C) → (…, 1, B, C)."""
    return _Modulus.apply(z)


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
    t = torch.exp(bias) * r.clamp_min(torch.finfo(r.dtype).tiny) ** gain
    return t / ((1 + t) * (r + EPSILON)) * z


OPERATORS: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (collapse, threshold, sigmoid, tanh, unit_modulus, power, identity)
}

LEARNED: dict[str, dict[str, float]] = {
    "threshold": {"bias": 0.1},
    "sigmoid": {"gain": 1.0, "bias": 0.0},
    "power": {"gain": 1.0, "bias": 0.0},
}
"""The learned parameters of each operator, and where they start."""
