"""Residual networks are torchvision's where both exist, and what the switches turn off is not there."""

from __future__ import annotations

import itertools

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from data_prep.common.errors import UserError
from pipeline.models import ImageNetwork, parameters
from pipeline.models.resnet import NONLINEARITIES, Activation, ResNet

SWITCHES = list(itertools.product([False, True], repeat=2))


def resnet(depth: int = 20, **changes: object) -> ResNet:
    arguments: dict = {
        "depth": depth,
        "stem": "cifar",
        "nonlinearity": "relu",
        "biases": True,
        "affine": True,
        "classifier_bias": True,
        "classes": 10,
        "size": (32, 32),
    }
    return ResNet(**(arguments | changes))


def small(depth: int = 20, **changes: object) -> ResNet:
    """A narrow network with running statistics, γ and β away from where they start."""
    torch.manual_seed(0)
    network = resnet(depth, **({"width_multiplier": 0.25 if depth == 20 else 0.0625} | changes))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            for value in module.parameters(recurse=False):
                nn.init.uniform_(value, 0.5, 1.5)
    return network


@pytest.mark.parametrize(("depth", "size"), [(18, 64), (34, 45), (50, 64)])
def test_torchvisions_weights_load_and_give_its_logits(depth: int, size: int) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=10).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    with torch.device("meta"):
        ours = resnet(depth, stem="imagenet").eval()
    ours.load_state_dict(theirs.state_dict(), assign=True)
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=1e-4)


def test_weights_start_with_the_variance_that_relu_needs() -> None:
    layers = dict(resnet(nonlinearity="tanh").named_modules())
    for name, fan_out in (("layer3.1.conv2", 64 * 9), ("layer3.0.downsample.0", 64)):
        layer = layers[name]
        assert isinstance(layer, nn.Conv2d)
        assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("depth", "stem", "classes", "count"),
    [
        (18, "imagenet", 1000, 11_689_512),
        (34, "imagenet", 1000, 21_797_672),
        (50, "imagenet", 1000, 25_557_032),
        (18, "cifar", 10, 11_173_962),
        (20, "cifar", 10, 272_474),
    ],
)
def test_parameters_are_as_many_as_published(depth: int, stem: str, classes: int, count: int) -> None:
    with torch.device("meta"):
        assert parameters(resnet(depth, stem=stem, classes=classes)) == count


@pytest.mark.parametrize("depth", [18, 20, 34, 50])
def test_channels_are_multiplied(depth: int) -> None:
    with torch.device("meta"):
        narrow, wide = (resnet(depth, width_multiplier=multiplier) for multiplier in (0.5, 1.5))
    for a, b in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert len(b) == (len(a) if a is narrow.fc.weight or a is narrow.fc.bias else 3 * len(a))


def test_resnet_20_refuses_the_imagenet_stem_by_name() -> None:
    with pytest.raises(UserError, match=r"model\.stem: ResNet-20 is defined for the CIFAR stem"):
        resnet(20, stem="imagenet")


@pytest.mark.parametrize(("depth", "stem"), [(18, "imagenet"), (18, "cifar"), (20, "cifar"), (50, "imagenet")])
def test_counted_multiply_adds_are_those_executed(depth: int, stem: str) -> None:
    size = (45, 70)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = resnet(depth, stem=stem, size=size).eval()
        network(torch.empty(1, 3, *size))
    assert 2 * network.multiply_adds() == counter.get_total_flops()


def test_resnet_50_has_the_published_multiply_adds() -> None:
    with torch.device("meta"):
        network = resnet(50, stem="imagenet", classes=1000, size=(224, 224))
    assert network.multiply_adds() == 4_089_184_256


@pytest.mark.parametrize("depth", [20, 50])
def test_switches_remove_every_shift_and_scale(depth: int) -> None:
    with torch.device("meta"):
        bare = resnet(depth, biases=False, affine=False, classifier_bias=False)
        scaled = resnet(depth, biases=False, affine=True, classifier_bias=False)
        shifted = resnet(depth, biases=True, affine=False, classifier_bias=False)
    assert all(value.ndim > 1 for value in bare.parameters())
    assert {name.rsplit(".")[-1] for name, value in scaled.named_parameters() if value.ndim == 1} == {"weight"}
    assert {name.rsplit(".")[-1] for name, value in shifted.named_parameters() if value.ndim == 1} == {"bias"}


def test_weight_decay_spares_thresholds_and_normalizations() -> None:
    with torch.device("meta"):
        network = ImageNetwork(resnet(nonlinearity="threshold"))
        decayed = {name for name, _ in network.named_parameters()} - network.no_decay_names()
        modules = dict(network.named_modules())
    assert len(decayed) == 1 + 9 * 2 + 2 + 1
    assert all(isinstance(modules[name.removesuffix(".weight")], nn.Conv2d | nn.Linear) for name in decayed)


VALUES = {
    "relu": [0.0, 0.0, 0.0, 0.05, 2.0],
    "absolute": [2.0, 0.05, 0.0, 0.05, 2.0],
    "threshold": [-1.9, 0.0, 0.0, 0.0, 1.9],
    "tanh": [-0.964028, -0.049958, 0.0, 0.049958, 0.964028],
    "sigmoid": [-0.880797, -0.512497, 0.0, 0.512497, 0.880797],
    "rational": [-2 / 3, -1 / 21, 0.0, 1 / 21, 2 / 3],
}


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities_have_the_values_of_their_formula(name: str) -> None:
    x = torch.tensor([-2.0, -0.05, 0.0, 0.05, 2.0]).view(1, 1, 1, 5).repeat(2, 3, 1, 1)
    expected = torch.tensor(VALUES[name]).expand(2, 3, 1, 5)
    torch.testing.assert_close(Activation(name, 3)(x), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_nonlinearities_have_the_derivative_of_their_formula(name: str) -> None:
    x = torch.tensor([-2.0, -0.7, -0.05, 0.05, 0.4, 1.5], dtype=torch.float64).view(1, 3, 2, 1).requires_grad_()
    module = Activation(name, 3).double()
    assert torch.autograd.gradcheck(lambda x, *_: module(x), (x, *module.parameters()))


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_derivatives_are_finite_at_zero_and_far_away(name: str) -> None:
    x = torch.tensor([0.0, -1e30, 1e30]).view(1, 3, 1, 1).requires_grad_()
    module = Activation(name, 3)
    module(x).sum().backward()
    assert all(torch.isfinite(value.grad).all() for value in (x, *module.parameters()))
    assert x.grad is not None
    assert x.grad[0, 0].item() == (1 if name in ("tanh", "rational") else 0)


def test_thresholds_are_one_for_each_channel() -> None:
    module = Activation("threshold", 2)
    with torch.no_grad():
        module.threshold.copy_(torch.tensor([0.5, 1.0]))  # type: ignore[union-attr]
    torch.testing.assert_close(module(torch.full((1, 2, 1, 1), -3.0)).flatten(), torch.tensor([-2.5, -2.0]))


def test_every_block_ends_in_its_nonlinearity() -> None:
    ends: list[Tensor] = []
    network = small(nonlinearity="tanh")
    for block in network.blocks():
        block.register_forward_hook(lambda _module, _inputs, output: ends.append(output))
    network(torch.randn(2, 3, 16, 16))
    assert len(ends) == 9
    assert all(end.abs().max() <= 1 and end.min() < 0 for end in ends)


@pytest.mark.parametrize("name", NONLINEARITIES)
@pytest.mark.parametrize("depth", [20, 50])
def test_every_parameter_has_a_gradient(depth: int, name: str) -> None:
    network = small(depth, nonlinearity=name)
    functional.cross_entropy(network(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in network.parameters())


@pytest.mark.parametrize(("depth", "stem"), [(18, "imagenet"), (50, "imagenet"), (18, "cifar"), (20, "cifar")])
@pytest.mark.parametrize("size", [(33, 50), (47, 31)])
def test_any_size_of_image_gives_logits(depth: int, stem: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert small(depth, stem=stem).eval()(torch.randn(2, 3, *size)).shape == (2, 10)


def test_seed_decides_the_weights() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(resnet(width_multiplier=0.25).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["layer2.0.conv1.weight"], weights[2]["layer2.0.conv1.weight"])


@pytest.mark.parametrize("name", NONLINEARITIES)
def test_channels_last_stays_and_gives_the_same_logits(name: str) -> None:
    network, images = small(nonlinearity=name).eval(), torch.randn(2, 3, 16, 16)
    layouts: list[bool] = []
    with torch.no_grad():
        expected = network(images)
        network = network.to(memory_format=torch.channels_last)
        for block in network.blocks():
            block.register_forward_hook(
                lambda _m, _i, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
            )
        found = network(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert len(layouts) == 9 and all(layouts)


@pytest.mark.parametrize(("affine", "biases"), SWITCHES)
@pytest.mark.parametrize("name", ["relu", "threshold"])
def test_bfloat16_autocast_computes_in_bfloat16_and_is_close(name: str, affine: bool, biases: bool) -> None:
    network, images = small(nonlinearity=name, affine=affine, biases=biases), torch.randn(8, 3, 16, 16)
    expected = network(images)
    types: list[torch.dtype] = []
    for module in network.modules():
        if isinstance(module, Activation):
            module.register_forward_hook(lambda _module, _inputs, output: types.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images)
    assert set(types) == {torch.bfloat16}
    assert (found.float() - expected).norm() < 0.06 * expected.norm()
    found.float().square().sum().backward()
    assert all(value.grad is not None and torch.isfinite(value.grad).all() for value in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "affine", "biases"), [("threshold", True, False), ("sigmoid", False, True)])
def test_compiles_as_one_graph_with_the_same_gradients(name: str, affine: bool, biases: bool) -> None:
    network, images = small(nonlinearity=name, affine=affine, biases=biases), torch.randn(4, 3, 8, 8)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    gradients = []
    for run in (network, compiled):
        network.zero_grad()
        run(images).square().sum().backward()
        gradients.append([value.grad for value in network.parameters()])
    for eager, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, eager, atol=1e-3, rtol=1e-3)
