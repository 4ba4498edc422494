"""Claims about steps 3 to 5 of a block: statistics, the learned projection, and the norm of what comes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from pipeline.models.projection import EPSILON, Projection, _moments, normalize, orthonormal

IN, OUT = 3, 2
INDEX = torch.tensor([4, 0, 5, 2, 1])  # in any order; channel 0 is real: no place has its imaginary part, 3


def example(rows: int, **changes: bool) -> tuple[Projection, Tensor, Tensor]:
    """A projection, its input as it is in memory (rows, 5), and the same as complex numbers (rows, 3)."""
    torch.manual_seed(0)
    both = torch.randn(rows, 2 * IN) * torch.arange(1, 2 * IN + 1) + 1
    both[:, IN] = 0
    return Projection(OUT, IN, INDEX, **changes), both[:, INDEX], torch.complex(both[:, :IN], both[:, IN:])


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
        projection.running_mean.copy_(torch.randn(2, IN)).view(-1)[IN] = 0
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


@pytest.mark.parametrize("rows", [1, 12, 101, 64 * 81])
@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_moments_keep_their_digits_far_from_zero(rows: int, dtype: torch.dtype, digits: float) -> None:
    torch.manual_seed(0)
    x = (1000 + torch.randn(rows, 5, dtype=torch.float64)).to(dtype)
    mean, variance = _moments(x)
    expected_variance, expected_mean = torch.var_mean(x.double(), 0, correction=0)
    assert mean.dtype == variance.dtype == dtype
    torch.testing.assert_close(mean.double(), expected_mean, atol=0, rtol=digits)
    torch.testing.assert_close(variance.double(), expected_variance, atol=0, rtol=100 * digits)


def test_moments_of_bfloat16_are_those_of_its_numbers() -> None:
    x = (10 + torch.randn(64 * 81, 5)).bfloat16()
    expected_variance, expected_mean = torch.var_mean(x.double(), 0, correction=0)
    mean, variance = _moments(x)
    assert mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean.double(), expected_mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(variance.double(), expected_variance, atol=0, rtol=1e-5)


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
