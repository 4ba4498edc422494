"""Claims about steps 3 to 5 of a block: statistics, the learned projection, and the norm of what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.models.batch_stats import EPSILON
from pipeline.models.fused import normalize
from pipeline.models.projection import Projection, orthonormal

IN, OUT = 4, 2
IMAGINARY = range(1, 3)
"""Channels that have an imaginary part: not the first, and not the last."""


def example(rows: int, **changes: bool) -> tuple[Projection, Tensor, Tensor]:
    """A projection, its input as it is in memory (rows, 6), and the same as complex numbers (rows, 4)."""
    torch.manual_seed(0)
    real = 1 + torch.randn(rows, IN) * torch.arange(1, IN + 1)
    imaginary = 2 + torch.randn(rows, len(IMAGINARY)) * torch.arange(3, 3 + len(IMAGINARY))
    padded = nn.functional.pad(imaginary, (IMAGINARY.start, IN - IMAGINARY.stop))
    projection = Projection(OUT, IN, IMAGINARY, **changes)
    return projection, torch.cat([real, imaginary], dim=1), torch.complex(real, padded)


def complex_rows(y: Tensor) -> Tensor:
    return torch.complex(y[:, :OUT], y[:, OUT:])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("complex_entries", [True, False], ids=["complex", "real"])
@pytest.mark.parametrize(("out", "inside"), [(3, 7), (7, 3), (4, 4)])
def test_weights_start_orthonormal(out: int, inside: int, complex_entries: bool) -> None:
    parts = orthonormal(out, inside, complex_entries)
    assert parts.shape == (1 + complex_entries, out, inside)
    weight = torch.complex(parts[0], parts[1] if complex_entries else torch.zeros(out, inside))
    gram = weight @ weight.mH if out <= inside else weight.mH @ weight
    torch.testing.assert_close(gram, torch.eye(min(out, inside), dtype=gram.dtype), atol=1e-12, rtol=0)
    assert (parts.abs().amax((1, 2)) > 0.1).all()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("complex_entries", [True, False], ids=["complex", "real"])
@pytest.mark.parametrize("standardize", [True, False], ids=["standardized", "plain"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_channels_are_standardized_and_projected(complex_entries: bool, standardize: bool, training: bool) -> None:
    projection, x, z = example(12, complex_entries=complex_entries, standardize=standardize)
    if training and standardize:
        z = (z - z.mean(0)) / torch.sqrt(EPSILON + z.var(0, correction=0))  # of a complex z: E|z − mean|²
    elif standardize:
        projection.running_mean.copy_(torch.randn(2, IN))
        projection.running_mean[1, [0, IN - 1]] = 0
        projection.running_var.copy_(1 + torch.rand(IN))
        z = (z - torch.complex(*projection.running_mean)) / torch.sqrt(EPSILON + projection.running_var)
    weight = projection.weight.detach()
    expected = z @ torch.complex(weight[0], weight[1] if complex_entries else torch.zeros(OUT, IN)).T
    torch.testing.assert_close(complex_rows(projection.train(training)(x)), expected, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("complex_entries", [True, False], ids=["complex", "real"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_derivatives_are_those_of_the_formula(complex_entries: bool, training: bool) -> None:
    projection, x, _ = example(6, complex_entries=complex_entries)
    projection.train(training)
    weight = projection.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, weight: functional_call(projection, {"weight": weight}, (x,)), (x.requires_grad_(), weight)
    )


def test_running_statistics_move_a_tenth_of_the_way_to_mean_and_unbiased_variance() -> None:
    projection, x, z = example(12)  # n/(n−1) is 9 % more than 1
    projection(x)
    torch.testing.assert_close(torch.complex(*projection.running_mean), 0.1 * z.mean(0))
    torch.testing.assert_close(projection.running_var, 0.9 + 0.1 * z.var(0))
    before = projection.running_var.clone()
    projection.eval()(x)
    assert torch.equal(projection.running_var, before)


@pytest.mark.usefixtures("double")
def test_normalization_divides_by_the_norm_of_both_parts_and_puts_them_before_the_columns() -> None:
    y = torch.randn(2, 3, 2, 2, 4, requires_grad=True)  # (H, W, B, 2, C)
    expected = y / y.flatten(3).norm(dim=3)[..., None, None]
    torch.testing.assert_close(normalize(y), expected.permute(0, 3, 1, 2, 4), atol=1e-12, rtol=0)
    assert normalize(y).is_contiguous()
    assert torch.autograd.gradcheck(normalize, (y,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-25])
def test_a_position_without_a_signal_stays_zero_and_passes_no_gradient(size: float, dtype: torch.dtype) -> None:
    y = torch.full((2, 1, 1, 2, 4), size, dtype=dtype)
    y[1] = 3
    output = normalize(y.requires_grad_())
    assert not output[0].any() and output[1].any()
    output.backward(torch.randn_like(output))
    assert torch.isfinite(y.grad).all() and not y.grad[0].any()  # type: ignore[union-attr, index]
