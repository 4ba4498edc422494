"""Claims about the moments of a batch: they keep the digits that their precision has."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.statistics import moments


@pytest.mark.parametrize("rows", [1, 12, 101, 64 * 81])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_moments_keep_their_digits_far_from_zero(rows: int, dtype: torch.dtype, digits: float) -> None:
    torch.manual_seed(0)
    x = (1000 + torch.randn(rows, 5, dtype=torch.float64)).to(dtype)
    mean, variance = moments(x)
    expected_variance, expected_mean = torch.var_mean(x.double(), 0, correction=0)
    assert mean.dtype == variance.dtype == dtype
    torch.testing.assert_close(mean.double(), expected_mean, atol=0, rtol=digits)
    torch.testing.assert_close(variance.double(), expected_variance, atol=0, rtol=100 * digits)


def test_moments_of_bfloat16_are_those_of_its_numbers() -> None:
    x = (10 + torch.randn(64 * 81, 5)).bfloat16()
    expected_variance, expected_mean = torch.var_mean(x.double(), 0, correction=0)
    mean, variance = moments(x)
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean.double(), expected_mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(variance.double(), expected_variance, atol=0, rtol=1e-5)
