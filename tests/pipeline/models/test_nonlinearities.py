"""Claims about ρ: values and derivatives are those of the formulas, at z = 0 too."""

from __future__ import annotations

import pytest
import torch

from pipeline.models.nonlinearities import NONLINEARITIES
from tests.reference import reference_network

nonlinearities = pytest.mark.parametrize("name", NONLINEARITIES)
SHAPE = (2, 2, 1, 3, 1, 2, 1, 2)  # (S, 2, T, K, M, N, B, C)
BY_FILTER = (3, 1, 1, 1, 2)  # (K, 1, 1, 1, C)


@pytest.mark.usefixtures("double")
@nonlinearities
def test_values_are_those_of_the_formula(name: str) -> None:
    z = torch.randn(SHAPE)
    parameters = {key: torch.rand(BY_FILTER) + 0.2 for key in NONLINEARITIES[name].parameters}
    ours = NONLINEARITIES[name].function(z, *parameters.values())
    # Each filter and channel as a channel of its own, (B, K·C, H, W).
    channels = torch.complex(z[:, 0], z[:, 1]).permute(5, 2, 6, 0, 1, 3, 4).reshape(1, 6, 2, 2)
    expected = reference_network.rho(name, **{key: value.flatten() for key, value in parameters.items()})(channels)
    expected = torch.view_as_real(expected.view(1, 3, 2, 2, 1, 1, 2)).permute(3, 7, 4, 1, 5, 6, 0, 2)
    torch.testing.assert_close(ours, expected[:, : ours.shape[1]], atol=1e-12, rtol=0)
    assert not expected[:, ours.shape[1] :].any()


@pytest.mark.usefixtures("double")
@nonlinearities
def test_derivatives_are_those_of_the_formula(name: str) -> None:
    z = torch.randn(SHAPE, requires_grad=True)
    parameters = [torch.rand(BY_FILTER).add(0.2).requires_grad_() for _ in NONLINEARITIES[name].parameters]
    assert torch.autograd.gradcheck(NONLINEARITIES[name].function, (z, *parameters))


@nonlinearities
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_values_and_derivatives_are_finite_where_a_coefficient_is_zero(name: str, dtype: torch.dtype) -> None:
    z = torch.zeros(SHAPE, dtype=dtype, requires_grad=True)
    parameters = [torch.full(BY_FILTER, 0.5, requires_grad=True) for _ in NONLINEARITIES[name].parameters]
    values = NONLINEARITIES[name].function(z, *parameters)
    values.float().sum().backward()
    assert all(torch.isfinite(t).all() for t in (values, z.grad, *(p.grad for p in parameters)))
    assert values.abs().max() < 1e-15


@pytest.mark.parametrize(("gain", "bias"), [(-3.0, 0.0), (1.0, 100.0), (40.0, -100.0)])
def test_power_does_not_overflow(gain: float, bias: float) -> None:
    z = torch.tensor([0.0, 1e-20, 1.0, 1e15]).view(1, 1, 1, 1, 1, 1, 1, 4).repeat(1, 2, 1, 1, 1, 1, 1, 1)
    z.requires_grad_()
    parameters = [torch.full((1, 1, 1, 1, 1), value, requires_grad=True) for value in (gain, bias)]
    values = NONLINEARITIES["power"].function(z, *parameters)
    values.sum().backward()
    assert all(torch.isfinite(t).all() for t in (values, z.grad, *(p.grad for p in parameters)))
