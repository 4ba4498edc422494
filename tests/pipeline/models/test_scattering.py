"""Claims about blocks and network: they compute what a plain double-precision oracle does, whatever their kind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_prep.common.errors import UserError
from pipeline.models import projection
from pipeline.models.nonlinearities import NONLINEARITIES
from pipeline.models.scattering import Block, BlockConfig, ScatteringNetwork
from pipeline.models.wavelet_transform import WaveletTransform
from pipeline.models.wavelets import Octave, octaves_of_blocks
from tests import parity
from tests.reference import reference_network

skips = pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
nonlinearities = pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
FULL_OCTAVES = 1


def small(
    kind: BlockConfig | None = None, *, widths: tuple[int, ...] = (3, 4, 2), size: int = 13, **classifier: object
) -> ScatteringNetwork:
    """A network of a full octave and two half ones on 13-pixel images: odd sizes, 13 → 6 → 6 → 3."""
    torch.manual_seed(0)
    network = ScatteringNetwork(
        widths=widths,
        octaves=octaves_of_blocks(len(widths), FULL_OCTAVES),
        angles=4,
        kind=kind or BlockConfig(),
        classes=5,
        size=(size, size),
        **classifier,  # type: ignore[arg-type]
    )
    with torch.no_grad():  # away from where they start, so that a mixed-up order shows
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if "operator" in name or ("normalization" in name and "running" not in name and value.ndim == 1):
                value.add_(0.1 * torch.randn_like(value))
    return network


def block(kind: BlockConfig, parts: int, size: int = 7) -> Block:
    torch.manual_seed(0)
    return Block((2, 3), parts, WaveletTransform(size, size, Octave.FULL, 4, parts), kind)


def oracle_logits(network: ScatteringNetwork, images: Tensor) -> Tensor:
    blocks: list[Block] = list(network.blocks)  # type: ignore[arg-type]
    kind, classifier = blocks[0].kind, network.classifier
    weights, functions = [], []
    for b in blocks:
        features, acted_on = (torch.from_numpy(order.argsort()) for order in parity.orders(b))
        weight = b.projection.weight[..., features]
        weights.append(torch.complex(weight[0], weight[1] if kind.complex_projection else torch.zeros_like(weight[0])))
        parameters = {name: getattr(b, f"operator_{name}").flatten()[acted_on] for name in b.nonlinearity_parameters}
        functions.append(reference_network.rho(kind.nonlinearity, **parameters))
    return reference_network.network(
        images,
        weights,
        angles=blocks[0].wavelets.filters - 1,
        first_factorized_block=FULL_OCTAVES,
        skip=kind.skip,
        nonlinearities=functions,
        classifier=reference_network.Classifier(
            normalized=isinstance(classifier.normalization, torch.nn.BatchNorm2d),
            scale=getattr(classifier.normalization, "weight", None),
            shift=getattr(classifier.normalization, "bias", None),
            weight=classifier.linear.weight,
            bias=classifier.linear.bias,
            pooled=classifier.pooled,
        ),
        standardized=kind.standardize,
        normalized=kind.normalize,
    )


def assert_agrees_with_the_oracle(network: ScatteringNetwork, size: int = 13) -> None:
    """Loss and all gradients, in training mode."""
    images, labels = torch.randn(4, 3, size, size, requires_grad=True), torch.tensor([0, 1, 2, 3])
    ours = torch.nn.functional.cross_entropy(network(images), labels)
    theirs = torch.nn.functional.cross_entropy(oracle_logits(network, images), labels)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=0)
    sources = [images, *network.parameters()]
    for a, b in zip(torch.autograd.grad(ours, sources), torch.autograd.grad(theirs, sources), strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-12


@pytest.mark.usefixtures("double")
@skips
@nonlinearities
def test_network_and_gradients_agree_with_the_oracle(nonlinearity: str, skip: bool) -> None:
    assert_agrees_with_the_oracle(small(BlockConfig(nonlinearity=nonlinearity, skip=skip)))


@pytest.mark.usefixtures("double")
@skips
@pytest.mark.parametrize("nonlinearity", ["collapse", "sigmoid"])
@pytest.mark.parametrize("without", ["complex_projection", "standardize", "normalize", "operator_learned"])
def test_so_do_networks_without_one_step(without: str, nonlinearity: str, skip: bool) -> None:
    kind = replace(BlockConfig(nonlinearity=nonlinearity, skip=skip), **{without: False})
    assert_agrees_with_the_oracle(small(kind))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "changes",
    [{"pooled": True}, {"normalization": "plain"}, {"normalization": "none"}, {"bias": False}],
    ids=["pooled", "plain normalization", "no normalization", "no bias"],
)
def test_so_do_other_classifiers(changes: dict[str, object]) -> None:
    assert_agrees_with_the_oracle(small(**changes))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("widths", "size"), [((3, 4, 2, 3), 13), ((3, 4), 6), ((5,), 3)])
def test_the_smallest_sizes_agree_with_the_oracle(widths: tuple[int, ...], size: int) -> None:
    assert_agrees_with_the_oracle(small(widths=widths, size=size), size)


def test_fixed_parameters_of_a_nonlinearity_are_those_of_the_settings_and_not_learned() -> None:
    kind = BlockConfig(nonlinearity="sigmoid", operator_learned=False, operator_gain=2.0, operator_bias=3.0)
    fixed = block(kind, parts=2)
    assert [name for name, _ in fixed.named_parameters()] == ["projection.weight"]
    assert {"operator_gain", "operator_bias"} <= fixed.state_dict().keys()
    assert (fixed.operator_gain == 2).all() and (fixed.operator_bias == 3).all()


def test_a_parameter_that_a_nonlinearity_does_not_have_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.operator_gain: threshold has no gain; leave it out"):
        block(BlockConfig(nonlinearity="threshold", operator_gain=2.0), parts=2)


@pytest.mark.usefixtures("double")
@skips
@pytest.mark.parametrize("parts", [1, 2], ids=["real", "complex"])
def test_phase_collapse_is_as_fused_as_it_is_in_general(parts: int, skip: bool) -> None:
    fused, general = (block(BlockConfig(skip=skip), parts) for _ in range(2))
    general.nonlinearity = replace(general.nonlinearity, fused_features=None)
    x = torch.randn(7, parts, 7, 2, 2, requires_grad=True)
    ours, expected = fused.features(x), general.features(x)
    torch.testing.assert_close(ours, expected, atol=1e-14, rtol=0)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad(features, x, weight)[0] for features in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-13, rtol=0)


@pytest.mark.usefixtures("double")
@skips
@pytest.mark.parametrize("parts", [1, 2], ids=["real", "complex"])
def test_derivatives_of_phase_collapse_are_those_of_its_values(parts: int, skip: bool) -> None:
    x = torch.randn(4, parts, 4, 1, 2, requires_grad=True)
    assert torch.autograd.gradcheck(block(BlockConfig(skip=skip), parts, size=4).features, (x,))


@skips
@nonlinearities
@pytest.mark.parametrize("standardize", [True, False], ids=["standardized", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_input_of_zeros_has_finite_gradients(
    nonlinearity: str, skip: bool, standardize: bool, dtype: torch.dtype
) -> None:
    tested = block(BlockConfig(nonlinearity=nonlinearity, skip=skip, standardize=standardize), parts=2)
    x = torch.zeros(7, 2, 7, 2, 2, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = tested(x)
    output.float().mul(torch.randn(output.shape)).sum().backward()
    values = [output, x.grad, *(parameter.grad for parameter in tested.parameters())]
    assert all(torch.isfinite(value).all() for value in values)  # type: ignore[arg-type]


@pytest.mark.usefixtures("double")
def test_outputs_have_unit_norm_at_each_position_unless_they_are_not_normalized() -> None:
    images = torch.randn(2, 3, 13, 13)
    for output in small().features(images):
        torch.testing.assert_close(output.square().sum((1, 4)), torch.ones(*output.shape[:1], *output.shape[2:4]))
    for output in small(BlockConfig(normalize=False)).features(images):
        assert (output.square().sum((1, 4)) - 1).abs().max() > 0.1


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("nonlinearity", ["collapse", "unit_modulus"])
@pytest.mark.parametrize(("size", "border"), [(64, 6), (96, 7)], ids=["whole axes", "windows"])
def test_shifting_the_image_shifts_the_features(nonlinearity: str, size: int, border: int) -> None:
    # Reflected borders differ. What they change falls off as the filters do: like a Gaussian, in each block.
    network = small(BlockConfig(nonlinearity=nonlinearity), size=size).eval()
    images, step = torch.randn(1, 3, size + 4, size + 4), 4  # subsampling by 2, 1 and 2
    here, there = network.features(images[..., :size, :size])[-1], network.features(images[..., step:, step:])[-1]
    expected = there[border - 1 : -border - 1, :, border - 1 : -border - 1]
    torch.testing.assert_close(here[border:-border, :, border:-border], expected, atol=1e-11, rtol=0)


@pytest.mark.usefixtures("double")
def test_evaluation_uses_running_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "MOMENTUM", 1.0)  # the running statistics are then those of the last batch
    network, images = small(), torch.randn(8, 3, 13, 13)
    network.classifier.normalization.momentum = 1.0
    trained = network(images)
    evaluated = network.eval()(images)
    # They differ by the unbiased variance alone: n/(n−1) with n = 8·9 positions in the smallest block.
    torch.testing.assert_close(evaluated, trained, atol=0.05, rtol=0.05)
    assert not torch.equal(evaluated, trained)
    torch.testing.assert_close(network(images[:1]), evaluated[:1])


def test_too_small_images_name_the_block() -> None:
    def network(blocks: int) -> ScatteringNetwork:
        full = [Octave.FULL] * blocks
        sizes = {"classes": 2, "size": (18, 18)}
        return ScatteringNetwork(widths=[4] * blocks, octaves=full, angles=4, kind=BlockConfig(), **sizes)

    message = r"block 3 of 4 would filter 2×2 pixels for images of 18×18, and needs 3×3"
    with pytest.raises(UserError, match=message):
        network(4)
    assert len(network(3).blocks) == 3


@pytest.mark.parametrize("size", [(14, 13), (12, 13), (26, 26), (1, 169)])
def test_images_of_another_size_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"images of {size[0]}×{size[1]} pixels for a network .* built for 13×13"):
        small()(torch.randn(2, 3, *size))
