"""Claims about the wavelet transform: it is the convolution with each filter, on every size, and so is its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.models.tiling import Axis, GatherWindows, padded_size
from pipeline.models.wavelet_transform import WaveletTransform, output_size
from pipeline.models.wavelets import Octave, filter_bank

SIZES = {
    (3, 3): "the smallest",
    (7, 6): "no powers of two",
    (32, 32): "whole axes",
    (12, 20): "a rectangle",
    (72, 72): "windows on both axes",
    (80, 9): "windows along the rows",
    (9, 80): "windows along the columns",
    (75, 75): "tiles that are not full",
    (75, 20): "rows whose tiles are not full",
}
sizes = pytest.mark.parametrize(("height", "width"), SIZES, ids=SIZES.values())
octaves = pytest.mark.parametrize("octave", Octave, ids=lambda octave: octave.name)


def filtered(x: Tensor, octave: Octave, angles: int) -> Tensor:
    """x (H, parts, W, B, C) → (H', W', 2, 1 + L, B, C), by Fourier transforms of padded signal and filters."""
    signal = torch.complex(x[:, 0], x[:, 1] if x.shape[1] == 2 else torch.zeros_like(x[:, 0]))
    for axis in (0, 1):
        size = signal.shape[axis]
        before = (padded_size(size) - size) // 2
        places = (np.arange(padded_size(size)) - before) % (2 * size - 2)
        signal = signal.index_select(axis, torch.from_numpy(np.minimum(places, 2 * size - 2 - places)))
    bank = filter_bank(octave, angles, *signal.shape[:2])
    spectra = torch.fft.fft2(torch.from_numpy(np.concatenate([bank.phi[None], bank.psi])))
    z = torch.fft.ifft2(torch.fft.fft2(signal, dim=(0, 1)) * spectra[..., None, None], dim=(1, 2))
    z = z[:, 2:-2, 2:-2] if octave.subsampling == 1 else z[:, ::2, ::2][:, 1:-1, 1:-1]
    return torch.view_as_real(z).permute(1, 2, 5, 0, 3, 4)


def by_pixel(z: Tensor) -> Tensor:
    """z (S, 2, T, 1 + L, M, N, B, C) → (M·S, N·T, 2, 1 + L, B, C)."""
    return z.permute(4, 0, 5, 2, 1, 3, 6, 7).flatten(0, 1).flatten(1, 2)


@pytest.mark.usefixtures("double")
@octaves
@sizes
@pytest.mark.parametrize("parts", [1, 2])
def test_each_filter_is_convolved_with_the_reflected_signal(
    height: int, width: int, octave: Octave, parts: int
) -> None:
    x = torch.randn(height, parts, width, 2, 3)
    transform = WaveletTransform(height, width, octave, 6 if width == 7 else 4, parts)
    expected = filtered(x, octave, transform.filters - 1)
    whole = transform.rows.whole and transform.columns.whole
    # Windows leave taps below 1e-7 of the largest out, of a φ that sums to about 1.
    tolerance = 1e-13 if whole else 2e-7
    torch.testing.assert_close(by_pixel(transform(x)), expected, atol=tolerance * expected.abs().max().item(), rtol=0)
    assert transform.output == expected.shape[:2] == (output_size(height, octave), output_size(width, octave))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("size", "octave"), [(34, Octave.FIRST_HALF), (66, Octave.SECOND_HALF)])
def test_filters_may_be_as_long_as_the_axis(size: int, octave: Octave) -> None:
    x = torch.randn(size, 2, size, 1, 1)
    z, expected = by_pixel(WaveletTransform(size, size, octave, 32, 2)(x)), filtered(x, octave, 32)
    torch.testing.assert_close(z, expected, atol=2e-7 * expected.abs().max().item(), rtol=0)


def test_the_sizes_above_are_what_their_names_say() -> None:
    def axis(size: int) -> Axis:
        return WaveletTransform(size, size, Octave.FULL, 4, 1).rows

    assert axis(32).whole and not axis(72).whole
    assert axis(72).tiles > 1 and axis(72).tiles * axis(72).tile == axis(72).output
    assert axis(75).tiles * axis(75).tile > axis(75).output


@pytest.mark.usefixtures("double")
@octaves
@sizes
@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_is_the_adjoint(height: int, width: int, octave: Octave, parts: int) -> None:
    transform = WaveletTransform(height, width, octave, 4, parts)
    x, other = torch.randn(2, height, parts, width, 2, 3)
    z = transform(x.requires_grad_())
    weight = torch.randn_like(z)
    (gradient,) = torch.autograd.grad(z, x, weight)
    terms = transform(other) * weight
    assert (gradient * other).sum().item() == pytest.approx(terms.sum().item(), abs=1e-12 * terms.abs().sum().item())


@pytest.mark.parametrize(
    ("size", "octave", "after"),
    [(7, Octave.FIRST_HALF, 6), (7, Octave.FULL, 3), (6, Octave.SECOND_HALF, 3), (32, Octave.FULL, 16)],
)
def test_sizes_follow_the_papers_code(size: int, octave: Octave, after: int) -> None:
    assert output_size(size, octave) == after


@pytest.mark.parametrize("size", [32, 72])
@pytest.mark.parametrize(
    ("dtype", "bands", "trace"), [(torch.float32, range(1, 5), 2e-7), (torch.bfloat16, [2], 1e-6)], ids=str
)
def test_a_constant_leaves_no_trace_in_wavelets_in_bfloat16_in_those_along_the_rows(
    size: int, dtype: torch.dtype, bands: list[int], trace: float
) -> None:
    z = WaveletTransform(size, size, Octave.FULL, 4, 1)(torch.full((size, 1, size, 1, 1), 100.0, dtype=dtype))
    assert z[:, :, :, bands].abs().max() < trace * z[:, :, :, 0].abs().max()


def test_windows_copy_and_add_up_what_came_from_one_place() -> None:
    index = np.array([4, 1, 1, 0, 4, 4, 2])
    windows = GatherWindows(index, 6)
    x = torch.randn(2, 6, 3, requires_grad=True)
    copies = windows(x)
    torch.testing.assert_close(copies, x[:, torch.from_numpy(index)])
    weight = torch.randn_like(copies)
    first, second = (torch.autograd.grad(windows(x), x, weight)[0] for _ in range(2))
    (expected,) = torch.autograd.grad(x[:, torch.from_numpy(index)], x, weight)
    torch.testing.assert_close(first, expected)
    assert torch.equal(first, second)


def test_windows_that_are_everything_copy_nothing() -> None:
    x = torch.randn(2, 6, 3)
    assert GatherWindows(np.arange(6), 6)(x) is x
