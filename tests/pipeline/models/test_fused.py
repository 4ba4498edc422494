"""Claims about hand-written backward passes: values and gradients are those of the plain formula beside each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.models import fused, projection
from pipeline.models.tiling import GatherWindows

pytestmark = pytest.mark.usefixtures("double")
PART = slice(1, 3)
"""Channels of the projection's input that have an imaginary part, of 4."""


def assert_same(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Values and the gradients of a random weighted sum, in double precision."""
    for each in inputs:
        each.requires_grad_()
    found, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, weight) for y in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-11, rtol=0)


def test_gathered_entries() -> None:
    index = np.array([4, 1, 1, 0, 4, 4, 2])
    assert_same(
        GatherWindows(index, 6), lambda x: fused.plain_gather_entries(x, torch.from_numpy(index)), torch.randn(2, 6, 3)
    )


@pytest.mark.parametrize("parts", [1, 2])
def test_frequencies_of_rows(parts: int) -> None:
    h = np.arange(5)
    wave = np.exp(-2j * np.pi * np.outer(h, h) / 5)
    rows = np.stack([np.stack([wave.real, -wave.imag]), np.stack([wave.imag, wave.real])])[:, :parts]
    matrix = torch.from_numpy(rows.transpose(2, 0, 3, 1).reshape(10, 5 * parts).copy())
    assert_same(
        lambda x: fused.to_frequencies(x, matrix.to(x.dtype), parts),
        lambda x: fused.plain_to_frequencies(x, matrix),
        100 + torch.randn(5 * parts, 7),
    )


def test_the_modulus() -> None:
    assert_same(fused.modulus, fused.plain_modulus, torch.randn(3, 2, 4))


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("parts", [1, 2], ids=["real", "complex"])
def test_features_of_a_phase_collapse(parts: int, skip: bool) -> None:
    z = torch.randn(2, 2, 1, 3, 1, 2, 2, 2)
    if parts == 1:
        z[:, 1, :, 0] = 0  # φ*x of a real x
    assert_same(
        lambda z: fused.collapsed_features(z, parts, skip),
        lambda z: fused.plain_collapsed_features(z, parts, skip),
        z,
    )


@pytest.mark.parametrize("entries", [1, 2], ids=["real", "complex"])
def test_a_standardized_product(entries: int) -> None:
    assert_same(
        lambda x, weight: projection.standardized_product(x, weight, PART, False)[0],
        lambda x, weight: projection.plain_standardized_product(x, weight, PART),
        2 + torch.randn(9, 6),
        torch.randn(entries, 3, 4),
    )


def test_normalized_positions() -> None:
    assert_same(fused.normalize, fused.plain_normalize, torch.randn(2, 3, 2, 2, 4))
