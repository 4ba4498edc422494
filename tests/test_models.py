"""The network computes what the formulas say: against golden vectors, and against a plain double-precision oracle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_prep.errors import UserError
from pipeline.config import ModelSettings
from pipeline.models import ScatteringNetwork, build, multiply_adds, parameters
from pipeline.models.operators import LEARNED, OPERATORS
from pipeline.models.scattering import orthonormal
from pipeline.models.transform import SeparableFilters, WaveletTransform, output_size, padded_size
from pipeline.models.wavelets import Octave, angle, filter_bank, mirrored_angles
from tests import oracle, parity

OCTAVES = {Octave.FULL: "full", Octave.FIRST_HALF: "first", Octave.SECOND_HALF: "second"}
REQUIRED_GOLDEN = ("cifar_collapse", "cifar_collapse_skip", "imagenet_collapse")


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def small(nonlinearity: str = "collapse", **changes: object) -> ScatteringNetwork:
    """A network of a full octave and two half ones on 13-pixel images: odd sizes, 13 → 6 → 6 → 3."""
    torch.manual_seed(0)
    arguments: dict = {
        "widths": (3, 4, 2),
        "angles": 4,
        "first_factorized_block": 1,
        "nonlinearity": nonlinearity,
        "skip": False,
        "pooled": False,
        "classes": 5,
        "size": (13, 13),
    }
    return ScatteringNetwork(**(arguments | changes))


def oracle_logits(network: ScatteringNetwork, images: Tensor, nonlinearity: str) -> Tensor:
    blocks = list(network.blocks)
    operators = [
        oracle.rho(nonlinearity, getattr(b, "operator_gain", None), getattr(b, "operator_bias", None)) for b in blocks
    ]
    classifier = network.classifier
    affine = (classifier.normalization.weight, classifier.normalization.bias)
    return oracle.network(
        images,
        [torch.complex(b.weight[0], b.weight[1]) for b in blocks],
        angles=len(blocks[0].wavelets.angle_order),
        first_factorized_block=1,
        skip=blocks[0].skip,
        pooled=classifier.pooled,
        nonlinearities=operators,
        classifier=(*affine, classifier.linear.weight, classifier.linear.bias),
    )


@pytest.mark.parametrize("name", REQUIRED_GOLDEN)
def test_golden_vectors_are_met_in_float32(shared: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(shared / "golden" / f"{name}.npz")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("nonlinearity", ["threshold", "sigmoid", "tanh", "unit_modulus"])
def test_other_operators_meet_their_golden_vectors(shared: Path, nonlinearity: str) -> None:
    assert parity.main([str(shared / "golden" / f"cifar_{nonlinearity}.npz")]) == 0


def test_parity_fails_on_wrong_numbers(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "golden" / "cifar_collapse.npz") as archive:
        golden = dict(archive)
    golden["block1_weight"] = golden["block1_weight"] * (1 + 0.01j)
    golden["block1_weight"][0] *= 1.01
    np.savez(tmp_path / "wrong.npz", **golden)
    assert parity.main([str(tmp_path / "wrong.npz")]) == 1


@pytest.mark.parametrize("octave", OCTAVES)
@pytest.mark.parametrize("angles", [4, 6])
def test_filters_follow_the_formula(octave: Octave, angles: int) -> None:
    bank = filter_bank(octave, angles, 10, 10)
    phi, psi = oracle.filters(10, angles, OCTAVES[octave])
    np.testing.assert_allclose(bank.phi, phi.numpy(), atol=1e-12)
    np.testing.assert_allclose(bank.psi, psi.numpy(), atol=1e-12)


@pytest.mark.parametrize("octave", OCTAVES)
def test_wavelets_have_zero_mean_and_stand_at_their_frequency(octave: Octave) -> None:
    size, angles = 64, 8
    bank = filter_bank(octave, angles, size, size)
    np.testing.assert_allclose(bank.psi.sum((1, 2)), 0, atol=1e-12)
    xi = math.pi / math.sqrt(2) if octave is Octave.SECOND_HALF else 3 * math.pi / 4
    for k in range(angles):
        spectrum = np.abs(np.fft.fft2(bank.psi[k]))
        row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
        frequency = np.fft.fftfreq(size)[[row, column]] * 2 * math.pi
        theta = angle(k, angles)
        # A tolerance of one and a half bins: the zero-mean correction moves the peak a little outwards.
        np.testing.assert_allclose(
            np.exp(1j * frequency),
            np.exp(1j * xi * np.array([math.cos(theta), math.sin(theta)])),
            atol=1.5 * 2 * math.pi / size,
        )


@pytest.mark.parametrize("angles", [4, 6, 8])
def test_every_angle_is_in_one_group_of_mirrored_ones(angles: int) -> None:
    groups = mirrored_angles(angles)
    assert sorted(k for group in groups for k in group) == list(range(angles))
    for first, second in (group for group in groups if len(group) == 2):
        assert angle(first, angles) == pytest.approx(-angle(second, angles))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("octave", OCTAVES)
@pytest.mark.parametrize(("size", "angles"), [(32, 4), (7, 4), (9, 8), (3, 6)])
def test_wavelet_transform_is_the_fourier_one(octave: Octave, size: int, angles: int) -> None:
    x = torch.randn(size, size, 2, 2, 3)
    transform = WaveletTransform(size, size, octave, angles, parts=2)
    low, band = transform(x)
    theirs_low, theirs_band = oracle.wavelet_transform(
        torch.complex(x[:, :, 0], x[:, :, 1]).permute(2, 3, 0, 1), angles, OCTAVES[octave]
    )
    ours_low = torch.complex(low[:, :, 0, 0], low[:, :, 0, 1]).permute(2, 3, 0, 1)
    joined = torch.cat(band, dim=2)[:, :, np.argsort(transform.angle_order)]
    ours_band = torch.complex(joined[:, :, :, 0], joined[:, :, :, 1]).permute(3, 4, 2, 0, 1).flatten(1, 2)
    torch.testing.assert_close(ours_low, theirs_low, atol=1e-7, rtol=0)
    torch.testing.assert_close(ours_band, theirs_band, atol=1e-7, rtol=0)


@pytest.mark.usefixtures("double")
def test_rectangles_are_filtered_along_each_axis_as_squares_are() -> None:
    kernels = filter_bank(Octave.FULL, 4, padded_size(12), padded_size(20)).psi
    wide = SeparableFilters(kernels, 12, 20, Octave.FULL, parts=1)
    tall = SeparableFilters(kernels.transpose(0, 2, 1).copy(), 20, 12, Octave.FULL, parts=1)
    x = torch.randn(12, 20, 1, 1, 2)
    torch.testing.assert_close(wide(x), tall(x.transpose(0, 1)).transpose(0, 1), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("size", "octave", "after"), [(7, Octave.FIRST_HALF, 6), (7, Octave.FULL, 3), (32, Octave.FULL, 16)]
)
def test_sizes_follow_the_papers_code(size: int, octave: Octave, after: int) -> None:
    assert output_size(size, octave) == after


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("nonlinearity", OPERATORS)
def test_network_and_gradients_agree_with_the_oracle(nonlinearity: str, skip: bool) -> None:
    network = small(nonlinearity, skip=skip)
    with torch.no_grad():  # away from where the learned parameters start, so that a mixed-up order shows
        for name, value in network.named_parameters():
            if "operator" in name or "normalization" in name:
                value.add_(0.1 * torch.randn_like(value))
    images = torch.randn(4, 3, 13, 13, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3])
    ours = torch.nn.functional.cross_entropy(network(images), labels)
    theirs = torch.nn.functional.cross_entropy(oracle_logits(network, images, nonlinearity), labels)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    sources = [images, *network.parameters()]
    for a, b in zip(torch.autograd.grad(ours, sources), torch.autograd.grad(theirs, sources), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-9


@pytest.mark.usefixtures("double")
def test_pooled_classifier_averages_positions() -> None:
    network = small(pooled=True)
    images = torch.randn(4, 3, 13, 13)
    torch.testing.assert_close(network(images), oracle_logits(network, images, "collapse"), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("nonlinearity", OPERATORS)
def test_operators_have_the_derivative_of_their_formula(nonlinearity: str) -> None:
    z = torch.randn(3, 2, 2, 4, requires_grad=True)
    values = [torch.rand(1, 4).add(0.2).requires_grad_() for _ in LEARNED.get(nonlinearity, {})]
    assert torch.autograd.gradcheck(OPERATORS[nonlinearity], (z, *values))


@pytest.mark.parametrize("nonlinearity", OPERATORS)
def test_gradient_is_finite_where_a_coefficient_is_zero(nonlinearity: str) -> None:
    z = torch.zeros(3, 2, 2, 4, requires_grad=True)
    values = [torch.full((1, 4), 0.5, requires_grad=True) for _ in LEARNED.get(nonlinearity, {})]
    OPERATORS[nonlinearity](z, *values).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (z, *values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("out", "inside"), [(3, 7), (7, 3)])
def test_projection_starts_orthonormal(out: int, inside: int) -> None:
    weight = torch.complex(*orthonormal(out, inside))
    gram = weight @ weight.mH if out <= inside else weight.mH @ weight
    torch.testing.assert_close(gram, torch.eye(min(out, inside), dtype=torch.complex64), atol=1e-6, rtol=0)


def test_block_outputs_have_unit_norm_at_each_position() -> None:
    for output in small().features(torch.randn(2, 3, 13, 13)):
        torch.testing.assert_close(output.square().sum((2, 4)), torch.ones(*output.shape[:2], 2))


@pytest.mark.usefixtures("double")
def test_evaluation_uses_running_statistics() -> None:
    network, images = small(), torch.randn(8, 3, 13, 13)
    for module in network.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0  # the running statistics are then those of the last batch
    trained = network(images)
    evaluated = network.eval()(images)
    # They differ by the unbiased variance alone: n/(n−1) with n = 8·9 positions in the smallest block.
    torch.testing.assert_close(evaluated, trained, atol=0.05, rtol=0.05)
    assert not torch.equal(evaluated, trained)
    torch.testing.assert_close(network(images[:1]), evaluated[:1])


def test_seed_decides_the_weights() -> None:
    model = ModelSettings(widths=(4, 4))
    weights = [build(model, 10, 16, seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["network.blocks.0.weight"], weights[2]["network.blocks.0.weight"])


def test_shifting_the_image_shifts_the_features() -> None:
    network = small(widths=(3, 4), size=(40, 40), first_factorized_block=2).eval()
    images = torch.randn(1, 3, 48, 48)
    left, right = network.features(images[..., :40, :40])[-1], network.features(images[..., 4:44, 4:44])[-1]
    torch.testing.assert_close(left[4:8, 4:8], right[3:7, 3:7], atol=2e-3, rtol=0)


def test_too_small_images_name_the_block() -> None:
    with pytest.raises(UserError, match=r"block 3 of 4 would filter 2×2 pixels for images of 18×18, and needs 3×3"):
        build(ModelSettings(widths=(4, 4, 4, 4), first_factorized_block=4), 10, 18)
    assert build(ModelSettings(widths=(4, 4, 4), first_factorized_block=3), 10, 18).network.blocks[2]


def test_the_papers_cifar_network_ends_at_two_pixels() -> None:
    widths = (64, 128, 256, 512, 512, 512, 512, 512)
    with torch.device("meta"):
        network = build(ModelSettings(widths=widths), 10, 32).network
    assert [block.wavelets.output[0] for block in network.blocks] == [32, 16, 16, 8, 8, 4, 4, 2]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("widths", "size"), [((3, 4, 2, 3), 13), ((3, 4), 6), ((5,), 3)])
def test_the_smallest_sizes_agree_with_the_oracle(widths: tuple[int, ...], size: int) -> None:
    network = small(widths=widths, size=(size, size))
    images = torch.randn(4, 3, size, size)
    torch.testing.assert_close(network(images), oracle_logits(network, images, "collapse"), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("nonlinearity", ["collapse", "identity"])
def test_counted_multiply_adds_are_those_executed(nonlinearity: str, skip: bool) -> None:
    model = ModelSettings(widths=(4, 6, 5), first_factorized_block=1, nonlinearity=nonlinearity, skip=skip)
    network = build(model, 10, 24).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 24, 24, 3, dtype=torch.uint8))
    assert 2 * multiply_adds(model, 10, 24) == counter.get_total_flops()


def test_a_complex_parameter_counts_as_two() -> None:
    network = build(ModelSettings(widths=(4,), first_factorized_block=1), 10, 16)
    in_channels, positions = 3 * 5, 6 * 6
    assert network.network.blocks[0].wavelets.output == (8, 8)
    positions = 8 * 8
    assert parameters(network) == 2 * 4 * in_channels + 2 * 8 + 8 * positions * 10 + 10


def test_weight_decay_spares_normalization_and_biases() -> None:
    names = build(ModelSettings(widths=(4,), nonlinearity="sigmoid"), 10, 16).no_decay_names()
    assert names == {
        f"network.{name}"
        for name in (
            "blocks.0.operator_gain",
            "blocks.0.operator_bias",
            "classifier.normalization.weight",
            "classifier.normalization.bias",
            "classifier.linear.bias",
        )
    }


def test_bfloat16_autocast_is_close_to_float32() -> None:
    network = build(ModelSettings(widths=(8, 8)), 10, 16).eval()
    pixels = torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)
    with torch.no_grad():
        exact = network(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(pixels)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.03 * exact.norm()
