"""The kernels for GPUs, run by Triton's interpreter, beside the operations that CPUs use.

`test_kernels` runs this file, in a process of its own: Triton decides when it is imported who runs its kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.model_schema import ScatteringSettings
from pipeline.models import build, fused, kernels, projection
from pipeline.models.batch_stats import moments
from pipeline.models.projection import collapsed_product
from pipeline.models.tiling import GatherWindows

PRECISIONS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
"""Rounding of one operation."""
DTYPES = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)


@pytest.fixture
def interpreted() -> Any:
    """The kernels, for tensors on the CPU."""
    return kernels.load()


def with_gradients(function: Callable[..., Any], *inputs: Tensor) -> list[Tensor]:
    """Results of a function, and the gradients of its first by the inputs."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    results = function(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(1)
    (results[0] * torch.randn(results[0].shape, generator=generator).to(results[0].dtype)).sum().backward()
    return [*(each.detach() for each in results), *(each.grad for each in leaves if each.grad is not None)]


def compare(monkeypatch: pytest.MonkeyPatch, gpu: Any, function: Callable[..., Any], *inputs: Tensor) -> None:
    """Fails unless the results and gradients of a function are about as near to those in more bits with the kernels as
    without, and the same bits twice."""
    dtype = torch.float64 if inputs[0].dtype == torch.float32 else torch.float32
    truth, expected = with_gradients(function, *(each.to(dtype) for each in inputs)), with_gradients(function, *inputs)
    monkeypatch.setattr(kernels, "of", lambda x: gpu)
    ours, again = with_gradients(function, *inputs), with_gradients(function, *inputs)
    assert len(ours) == len(expected) > len(inputs)
    for one, other, true, repeated in zip(ours, expected, truth, again, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        rounding = PRECISIONS[inputs[0].dtype] * true.norm()
        assert (one - true).norm() <= 1.5 * (other - true).norm() + rounding
        assert torch.equal(one, repeated)


def coefficients(filters: int, parts: int, dtype: torch.dtype) -> Tensor:
    """z (S, 2, T, F, M, N, B, C) of odd sizes, with one coefficient that is 0."""
    z_SPTFMNBC = torch.randn(1, 2, 2, filters, 1, 2, 1, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    z_SPTFMNBC[0, :, 0, filters - 1, 0, 0, 0, 0] = 0
    if parts == 1:
        z_SPTFMNBC[:, 1, :, 0] = 0
    return z_SPTFMNBC


@DTYPES
@pytest.mark.parametrize(("angles", "parts", "skip"), [(4, 1, False), (4, 2, True), (6, 1, True), (8, 2, False)])
def test_features_and_their_product(
    angles: int, parts: int, skip: bool, dtype: torch.dtype, interpreted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    z_SPTFMNBC = coefficients(1 + angles, parts, dtype)
    kept = 5 * (1 + angles if skip else 1)
    part, channels = slice(5 * (2 - parts), kept), kept + 5 * (1 + angles if skip else angles)
    weight_POI = torch.randn(2, 2, channels, generator=torch.Generator().manual_seed(2))
    weight_POI = weight_POI.to(torch.promote_types(dtype, torch.float32))

    def product(z_SPTFMNBC: Tensor, weight_POI: Tensor) -> Any:
        if kernels.of(z_SPTFMNBC):
            return collapsed_product(z_SPTFMNBC, weight_POI, parts, skip, part, False)
        features = fused.collapsed_features(z_SPTFMNBC, parts, skip).flatten(0, 4).flatten(1)
        return projection.standardized_product(features, weight_POI, part, False)

    with monkeypatch.context() as patch:
        compare(patch, interpreted, lambda z: fused.collapsed_features(z, parts, skip), z_SPTFMNBC)
    compare(monkeypatch, interpreted, product, z_SPTFMNBC, weight_POI)


@DTYPES
def test_normalization(dtype: torch.dtype, interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    y_HWBPC = torch.randn(2, 3, 5, 2, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    y_HWBPC[1, 1, 1] = 0  # output and derivative are 0
    compare(monkeypatch, interpreted, fused.normalize, y_HWBPC)


@DTYPES
def test_windows(dtype: torch.dtype, interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = GatherWindows(np.array([2, 1, 0, 1, 2, 3, 4, 3, 4, 5, 6, 5, 4, 3]), 7)
    compare(
        monkeypatch, interpreted, windows, torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    )


@DTYPES
def test_frequencies(dtype: torch.dtype, interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 10, generator=generator).to(torch.promote_types(dtype, torch.float32))
    x_AE = 1 + torch.randn(10, 37, generator=generator)
    compare(monkeypatch, interpreted, lambda x: fused.to_frequencies(x, matrix.to(x.dtype), 2), x_AE.to(dtype))


@DTYPES
def test_moments(dtype: torch.dtype, interpreted: Any) -> None:
    x_RD = (5 + 3 * torch.randn(133, 30, generator=torch.Generator().manual_seed(0))).to(dtype)
    for ours, expected in zip(interpreted.moments(x_RD), moments(x_RD), strict=True):
        assert ours.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_network(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them together, in training and evaluation."""
    settings = ScatteringSettings(widths=(2, 3), first_factorized_block=1)
    pixels = torch.randint(0, 256, (2, 7, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def results() -> list[Tensor]:
        network = build(settings, 3, 7, seed=1)
        nn.functional.cross_entropy(network(pixels), torch.tensor([0, 2])).backward()
        trained = [*(value.grad for value in network.parameters() if value.grad is not None), *network.buffers()]
        with torch.no_grad():
            return [*trained, network.eval()(pixels)]

    expected = results()
    monkeypatch.setattr(kernels, "of", lambda x: interpreted)
    for ours, other in zip(results(), expected, strict=True):
        assert (ours - other).double().norm() <= 1e-3 * other.double().norm() + 1e-6
