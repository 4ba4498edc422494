"""Parameters and costs of each layer of a network, from closed forms and measured in a forward pass.

The pass runs on fake tensors, which have a shape and a type but no data: torch takes the same code path as on a CPU,
including autocast, without computing, so a network for large images is measured in seconds.

A layer begins where a module of the network is entered or left, and ends where the next one begins. The costs of the
layers therefore add up to those of the network.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config.model_schema import ModelSettings
from pipeline.models import ImageNetwork, ScatteringNetwork, build
from pipeline.models.projection import Projection
from pipeline.models.resnet import Activation
from pipeline.models.scattering import Block
from pipeline.runtime.torch_internals import FakeTensorMode, storage_identity

SCALES = ("weight", "gain")
"""Suffixes of the names of multiplicative parameters; a parameter per channel with another name is a bias."""


@dataclass(frozen=True)
class Layer:
    """One step of the forward pass; costs are those of one image."""

    name: str
    """Name of its module, or prefix of its parameters' names."""
    does: str
    complex_channels: int
    real_channels: int
    size: tuple[int, ...]
    """Height and width of its output; empty for logits."""
    fixed: int = 0
    """Number of constants, such as filters; running statistics are neither learned nor fixed."""
    necessary: int = 0
    """Multiply-adds of the closed form: products with weights and filters, without those with known zeros."""
    overhead: str = ""
    """Why more multiply-adds are executed than necessary."""
    learned: int = 0
    """Number of learned parameters; a complex one counts as two."""
    classifier: bool = False
    """Whether the layer comes after the last block, and belongs to the classifier."""
    kernels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Kernel size of each learned weight that covers more than one pixel, by parameter name."""
    biases: dict[str, int] = field(default_factory=dict)
    """Number of entries of each learned bias, by parameter name."""
    executed: int = 0
    """Multiply-adds counted by torch, in matrix products and convolutions."""
    kept_bytes: int = 0
    """Memory that the forward pass keeps for the backward pass, without what an earlier layer keeps."""

    @property
    def block(self) -> str | None:
        """The block that contains the layer, such as blocks.2 or layer1.0; None outside of blocks."""
        found = re.match(r"(blocks|layer\d+)\.\d+(?=\.)", self.name)
        return found and found[0]

    def output_bytes(self, precision: str) -> int:
        """Memory of the layer's output, in bytes."""
        numbers = (2 * self.complex_channels + self.real_channels) * math.prod(self.size)
        return numbers * (2 if precision == "bfloat16" else 4)


class _Step(NamedTuple):
    """A layer before it is measured, and where it begins: where `module` is entered, or where it is left."""

    layer: Layer
    module: nn.Module
    entered: bool = True


def inspect(model: ModelSettings, classes: int, image_size: int, precision: str) -> list[Layer]:
    """The layers of a network, in the order in which they run.

    Args:
        model: settings of the network.
        classes: number of classes.
        image_size: side of the images, in pixels.
        precision: float32 or bfloat16, for the memory.

    Raises:
        UserError: the settings are inconsistent.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = build(model, classes, image_size)
        steps = _steps(network, image_size)
        images = torch.zeros(3, image_size, image_size, 3, dtype=torch.uint8)
        costs = _Costs(steps)
        network.eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter, costs.following(lambda: counter.get_total_flops() // 2):
            network(images[:1])
        executed = costs.by_layer()
        network.train()
        # The difference leaves out what does not depend on the batch (weights). Batch statistics need two images.
        few, more = (_kept(network, images[:batch], costs, precision) for batch in (2, 3))
    layers = [
        replace(step.layer, executed=executed[number], kept_bytes=more[number] - few[number])
        for number, step in enumerate(steps)
    ]
    return _with_parameters(layers, network)


def _kept(network: nn.Module, images: Tensor, costs: _Costs, precision: str) -> list[int]:
    """Bytes that each layer keeps for the backward pass; memory shared by several tensors counts once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage_identity(storage)] = storage  # held, so that its address is not reused
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        costs.following(lambda: sum(storage.nbytes() for storage in storages.values())),
    ):
        network(images)
    return costs.by_layer()


class _Costs:
    """Attributes the growth of a total during a forward pass to the layers."""

    def __init__(self, steps: list[_Step]) -> None:
        self._steps = steps
        self._spent: list[int] = []

    @contextmanager
    def following(self, total: Callable[[], int]) -> Iterator[None]:
        """Attributes the growth of `total` during the forward pass in the body."""
        self._total, self._spent, self._seen, self._current = total, [0] * len(self._steps), 0, 0
        hooks: list[Any] = []
        for number, (_, module, entered) in enumerate(self._steps):

            def begin(*ignored: object, number: int = number) -> None:
                self._settle()
                self._current = number

            hooks.append(module.register_forward_pre_hook(begin) if entered else module.register_forward_hook(begin))
        try:
            yield
            self._settle()
        finally:
            for hook in hooks:
                hook.remove()

    def by_layer(self) -> list[int]:
        """The growth of the total in each layer, in the last forward pass."""
        return self._spent

    def _settle(self) -> None:
        total = self._total()
        self._spent[self._current] += total - self._seen
        self._seen = total


def _with_parameters(layers: list[Layer], network: ImageNetwork) -> list[Layer]:
    """The layers with the number and kind of their parameters."""
    result = {layer.name: layer for layer in layers}
    for name, value in network.network.named_parameters():
        # Parameters that no layer owns would count for the first layer.
        owner = max((known for known in result if name.startswith(known)), key=len, default=layers[0].name)
        layer = result[owner]
        result[owner] = replace(layer, learned=layer.learned + value.numel())
        path, _, own_name = name.rpartition(".")
        # A weight is (out, in, side, …); that of a projection is one or two matrices (out, in).
        sides = () if isinstance(network.network.get_submodule(path), Projection) else tuple(value.shape[2:])
        if math.prod(sides) > 1:
            result[owner].kernels[name] = sides
        elif not own_name.endswith(SCALES):
            result[owner].biases[name] = value.numel()
    return list(result.values())


def _steps(network: ImageNetwork, image_size: int) -> list[_Step]:
    """The layers with their closed forms, in the order in which they run."""
    constants = network.mean.numel() + network.deviation.numel()
    pixels = Layer("pixels", "normalized", 0, network.mean.numel(), (image_size, image_size), fixed=constants)
    inner = network.network
    described = _of_scattering(inner) if isinstance(inner, ScatteringNetwork) else _of_convolutions(inner, image_size)
    return [_Step(pixels, network), *described]


def _of_scattering(network: ScatteringNetwork) -> Iterator[_Step]:
    blocks, classifier = cast(list[Block], list(network.blocks)), network.classifier
    for number, block in enumerate(blocks):
        yield from _of_block(f"blocks.{number}", block)
    if not isinstance(classifier.normalization, nn.Identity):
        channels, size = 2 * blocks[-1].out_channels, blocks[-1].wavelets.output
        layer = Layer("classifier.normalization", "batch normalization", 0, channels, size, classifier=True)
        yield _Step(layer, classifier.normalization)
    linear = replace(_linear("classifier.linear", classifier.linear), classifier=True)
    yield _Step(linear, classifier.linear)


def _of_block(name: str, block: Block) -> Iterator[_Step]:
    wavelets, projection, kind = block.wavelets, block.projection, block.kind
    channels, size, positions = block.in_channels, wavelets.output, math.prod(wavelets.output)
    real = channels * (2 - wavelets.parts)  # φ*x of a real x
    filtered = Layer(
        f"{name}.wavelets",
        f"φ and {wavelets.filters - 1} ψ",
        channels * wavelets.filters - real,
        real,
        size,
        fixed=wavelets.fixed_numbers(),
        necessary=wavelets.necessary_multiply_adds(channels),
        overhead="wavelet transforms as matrix products instead of fast Fourier transforms",
    )
    yield _Step(filtered, wavelets)
    complex_channels = len(projection.imaginary)
    acted_on = Layer(
        f"{name}.operator",
        f"ρ: {kind.nonlinearity}" + (", skip" if kind.skip else ""),
        complex_channels,
        projection.in_channels - complex_channels,
        size,
        fixed=sum(value.numel() for value in block.buffers(recurse=False)),
    )
    yield _Step(acted_on, wavelets, entered=False)
    projected = Layer(
        f"{name}.projection",
        ("standardize, " if kind.standardize else "") + f"{'complex' if kind.complex_projection else 'real'} P",
        block.out_channels,
        0,
        size,
        necessary=positions * projection.multiply_adds(),
    )
    yield _Step(projected, projection)
    if kind.normalize:
        normalized = Layer(f"{name}.normalization", "norm across channels", block.out_channels, 0, size)
        yield _Step(normalized, projection, entered=False)


def _of_convolutions(network: nn.Module, image_size: int) -> list[_Step]:
    """Steps of a network of torch's modules: each module without submodules, as it is entered."""
    steps: list[_Step] = []

    def note(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(entered: nn.Module, inputs: Any, output: Tensor) -> None:
            channels, size = output.shape[1], tuple(output.shape[2:])
            if isinstance(module, nn.Linear):
                layer = _linear(name, module)
            elif isinstance(module, nn.Conv2d):
                height, width = module.kernel_size
                necessary = module.weight.numel() * math.prod(size)
                layer = Layer(name, f"convolution {height}×{width}", 0, channels, size, necessary=necessary)
            else:
                layer = Layer(name, _words(module), 0, channels, size)
            steps.append(_Step(layer, module))

        return hook

    leaves = [(name, m) for name, m in network.named_modules() if not any(m.children()) and not _does_nothing(m)]
    hooks = [module.register_forward_hook(note(name, module)) for name, module in leaves]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    for hook in hooks:
        hook.remove()
    *before, last = steps
    return [*before, last._replace(layer=replace(last.layer, classifier=True))]


def _linear(name: str, linear: nn.Linear) -> Layer:
    size = linear.weight.numel()
    return Layer(name, "linear", 0, linear.out_features, (), necessary=size)


def _words(module: nn.Module) -> str:
    if isinstance(module, nn.BatchNorm2d):
        return "batch normalization"
    if isinstance(module, nn.MaxPool2d):
        return f"maximum of {module.kernel_size}×{module.kernel_size}"
    return f"ρ: {module.name}" if isinstance(module, Activation) else type(module).__name__


def _does_nothing(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)
