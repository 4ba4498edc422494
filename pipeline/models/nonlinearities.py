"""ρ: the non-linearities of a scattering block, by name. To add one, write its function and register it.

Each is a pure function of complex coefficients z = (real, imaginary), whose axes are

    z   (S, 2, T, F, M, N, B, C)   real and imaginary parts of F filters, as `WaveletTransform` returns them
    a   (F, 1, 1, 1, C)            gain, one real number per filter and channel, where the non-linearity has one
    b   (F, 1, 1, 1, C)            bias, likewise

A non-linearity with a real result, such as phase collapse, returns (S, 1, T, F, M, N, B, C); the amplitude reductions
return f(|z|)·z, with the phase of z. All have a finite derivative at z = 0, where the modulus itself has none: that of
the modulus is taken as 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from pipeline.models.fused import collapsed_features, modulus

EPSILON = 1e-6
"""Added to |z| where it divides."""


@dataclass(frozen=True)
class Nonlinearity:
    """A non-linearity of complex coefficients, and its parameters."""

    function: Callable[..., Tensor]
    """(z, *parameters) → ρ(z), with the axes above."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Initial value of each parameter, in the order of the function's arguments. A block learns one of each per filter
    and channel, as `operator_<name>`; the model summary counts one whose name ends in "gain" as a scale, any other as a
    bias. The settings `operator_gain` and `operator_bias` change the values of "gain" and "bias"."""
    real: bool = False
    """The result has no imaginary part: one entry on its second axis."""
    fused_features: Callable[[Tensor, int, bool], Tensor] | None = None
    """(z, parts, skip) → the features of a block (M, S, N, T, B, G, C), computed in one operation that the block uses
    instead of `function` outside of a compiler; see :func:`pipeline.models.fused.collapsed_features`."""


NONLINEARITIES: Registry[Nonlinearity] = Registry("model.nonlinearity")


@functools.cache
def find(name: str) -> Nonlinearity:
    """The non-linearity called `name`, tried once on coefficients of a few positions.

    Raises:
        UserError: there is none; or it raises an exception, or returns something other than ρ(z).
    """
    nonlinearity = NONLINEARITIES.find(name)
    z_SPTFMNBC = torch.linspace(-2.0, 2.0, 72, device="cpu").view(1, 2, 1, 3, 2, 1, 2, 3)
    parameters = [torch.full((3, 1, 1, 1, 3), float(start), device="cpu") for start in nonlinearity.parameters.values()]
    with explain_faults(f"model.nonlinearity: {name}"), torch.no_grad():
        result = nonlinearity.function(z_SPTFMNBC.clone(), *parameters)
    expected = (1, 1 if nonlinearity.real else 2, *z_SPTFMNBC.shape[2:])
    if not isinstance(result, Tensor) or result.shape != expected or not result.is_floating_point():
        found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise UserError(
            f"model.nonlinearity: {name} returns {found} for z {tuple(z_SPTFMNBC.shape)} instead of floating-point "
            f"numbers {expected}, as real is {nonlinearity.real}: correct it"
        )
    return nonlinearity


def collapse(z: Tensor) -> Tensor:
    """Phase collapse, |z|: real."""
    return modulus(z)


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


def identity(z: Tensor) -> Tensor:
    """z itself: a network without a non-linearity between its normalizations, for contrast."""
    return z


NONLINEARITIES.register("collapse", Nonlinearity(collapse, real=True, fused_features=collapsed_features))
NONLINEARITIES.register("threshold", Nonlinearity(threshold, {"bias": 0.1}))
NONLINEARITIES.register("sigmoid", Nonlinearity(sigmoid, {"gain": 1.0, "bias": 0.0}))
NONLINEARITIES.register("tanh", Nonlinearity(tanh))
NONLINEARITIES.register("unit_modulus", Nonlinearity(unit_modulus))
NONLINEARITIES.register("power", Nonlinearity(power, {"gain": 1.0, "bias": 0.0}))
NONLINEARITIES.register("identity", Nonlinearity(identity))
