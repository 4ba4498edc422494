"""Residual networks, which learn their spatial filters, for comparison: ResNet-18, 34, 50 and 20.

    y_0 = x,  y_i = ρ(N(w_i * y_{i−1})) for i = 1 … n−1,  block(x) = ρ(N(w_n * y_{n−1}) + shortcut(x))

ρ is a pointwise non-linearity of real numbers, N a batch normalization, and w_i a convolution without bias: n = 2 of
3×3 in a basic block, n = 3 of 1×1, 3×3 and 1×1 in a bottleneck, whose stride is that of the 3×3. The shortcut is
the identity, or N(w * x) with a 1×1 convolution w where the block changes the shape.

Suffixes of tensors name their axes: B images of a batch, C channels, H W rows and columns of pixels.

After He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (CVPR 2016). Layers have the names of
torchvision's, so that its weights load. Where the paper's ResNet-20 pads a shortcut with zero channels (269,722
parameters for 10 classes), this one projects it, as the larger networks do (272,474).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from pipeline.models.batch_stats import BatchNorm
from pipeline.runtime import activation_checkpointing

EXPANSION = 4
"""Output channels of a bottleneck for each of its inner channels."""
STAGES = {18: (2, 2, 2, 2), 20: (3, 3, 3), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Blocks of each stage, by depth; all stages but the first halve the sides and double the channels."""


@dataclass(frozen=True)
class RealNonlinearity:
    """A pointwise non-linearity of real numbers, and its parameters."""

    function: Callable[..., Tensor]
    """(x, *parameters) → ρ(x), for x (B, C, H, W) and parameters (C, 1, 1)."""
    parameters: Mapping[str, float] = field(default_factory=dict)
    """Initial value of each parameter, in the order of the function's arguments; one of each is learned per channel."""


NONLINEARITIES: Registry[RealNonlinearity] = Registry("model.nonlinearity")
"""To add one, write its function and register it."""


@functools.cache
def find_nonlinearity(name: str) -> RealNonlinearity:
    """The non-linearity called `name`, tried once on a few numbers.

    Raises:
        UserError: there is none; or it raises an exception, or returns something other than ρ(x).
    """
    nonlinearity = NONLINEARITIES.find(name)
    x_BCHW = torch.linspace(-2.0, 2.0, 24, device="cpu").view(2, 3, 2, 2)
    parameters = [torch.full((3, 1, 1), float(start), device="cpu") for start in nonlinearity.parameters.values()]
    with explain_faults(f"model.nonlinearity: {name}"), torch.no_grad():
        result = nonlinearity.function(x_BCHW.clone(), *parameters)
    if not isinstance(result, Tensor) or (result.shape, result.dtype) != (x_BCHW.shape, x_BCHW.dtype):
        found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise UserError(
            f"model.nonlinearity: {name} returns {found} for x of float32 {tuple(x_BCHW.shape)} instead of as many "
            "numbers of that type: correct it"
        )
    return nonlinearity


def soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """sign(x)·max(|x| − λ, 0)."""
    return torch.sign(x) * torch.relu(x.abs() - threshold)


def signed_sigmoid(x: Tensor) -> Tensor:
    """sign(x)·σ(|x|): the sign is kept, as the phase is in an amplitude sigmoid.

    It jumps from −1/2 over 0 to 1/2 at x = 0. The derivative is σ(x)·(1 − σ(x)) elsewhere, and taken as 0 there.
    """
    return torch.sign(x) * torch.sigmoid(x.abs())


NONLINEARITIES.register("relu", RealNonlinearity(torch.relu))
# The phase collapse of real numbers, whose phase is their sign; its derivative at 0 is 0.
NONLINEARITIES.register("absolute", RealNonlinearity(torch.abs))
NONLINEARITIES.register("threshold", RealNonlinearity(soft_threshold, {"threshold": 0.1}))
NONLINEARITIES.register("tanh", RealNonlinearity(torch.tanh))
NONLINEARITIES.register("sigmoid", RealNonlinearity(signed_sigmoid))
NONLINEARITIES.register("rational", RealNonlinearity(nn.functional.softsign))  # x/(1 + |x|)


class Activation(nn.Module):
    """ρ at one place of a network: x (B, C, H, W) → ρ(x), with parameters of its own, one of each per channel.

    Args:
        name: of ρ, in `NONLINEARITIES`.
        channels: C.

    Raises:
        UserError: no non-linearity has this name.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        nonlinearity = find_nonlinearity(name)
        self.name = name
        self.function, self.learned = nonlinearity.function, tuple(nonlinearity.parameters)
        for parameter, start in nonlinearity.parameters.items():
            self.register_parameter(parameter, nn.Parameter(torch.full((channels,), start)))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # In x's precision: under autocast, float32 parameters would make all that follows float32.
        parameters = (getattr(self, name).to(x_BCHW.dtype)[:, None, None] for name in self.learned)
        return self.function(x_BCHW, *parameters)


@dataclass(frozen=True)
class ResidualBlockConfig:
    """Settings that all blocks of a residual network share."""

    bottleneck: bool
    nonlinearity: str
    affine: bool
    biases: bool
    synchronized: bool

    def normalization(self, channels: int) -> BatchNorm:
        """N, whose scale γ is learned if `affine`, and shift β if `biases`."""
        return BatchNorm(channels, scale=self.affine, shift=self.biases, synchronized=self.synchronized)


class ResidualBlock(nn.Module):
    """A residual block: x (B, C, H, W) → (B, C', ⌈H/stride⌉, ⌈W/stride⌉), C' = width, or 4·width in a bottleneck."""

    def __init__(self, in_channels: int, width: int, stride: int, kind: ResidualBlockConfig) -> None:
        super().__init__()
        layers = [(width, 3, stride), (width, 3, 1)]  # channels, side of the kernel, stride
        if kind.bottleneck:
            layers = [(width, 1, 1), (width, 3, stride), (EXPANSION * width, 1, 1)]
        self.depth, self.out_channels = len(layers), layers[-1][0]
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != self.out_channels:
            self.downsample = nn.Sequential(
                convolution(in_channels, self.out_channels, 1, stride), kind.normalization(self.out_channels)
            )
        for number, (channels, side, step) in enumerate(layers, 1):
            self.add_module(f"conv{number}", convolution(in_channels, channels, side, step))
            self.add_module(f"bn{number}", kind.normalization(channels))
            self.add_module(f"rho{number}", Activation(kind.nonlinearity, channels))
            in_channels = channels

    def layers(self) -> list[tuple[nn.Conv2d, nn.Module, nn.Module]]:
        """Convolution, N and ρ of each layer, in the order in which they are applied."""
        numbers = range(1, self.depth + 1)
        return [(getattr(self, f"conv{n}"), getattr(self, f"bn{n}"), getattr(self, f"rho{n}")) for n in numbers]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        *first, (last_convolution, last_normalization, last_rho) = self.layers()
        y_BCHW = x_BCHW
        for convolve, normalize, rho in first:
            y_BCHW = rho(normalize(convolve(y_BCHW)))  # y_i = ρ(N(w_i * y_{i−1}))
        # ρ(N(w_n * y_{n−1}) + shortcut(x))
        return last_rho(last_normalization(last_convolution(y_BCHW)) + self.downsample(x_BCHW))


class ResNet(nn.Module):
    """Normalized images (B, 3, H, W) → logits (B, classes).

    Args:
        depth: 18, 20, 34 or 50; 20 is the paper's network for CIFAR, three stages of 16, 32 and 64 channels.
        stem: 'imagenet', a 7×7 convolution of stride 2 and a max pool, or 'cifar', a 3×3 convolution of stride 1.
        nonlinearity: ρ, one of `NONLINEARITIES`.
        biases, affine: what normalizations learn, β and γ.
        width_multiplier: multiplies the channels of all layers, rounded, at least 1.
        size: (H, W) of the images for which multiply-adds are counted; images of any size are accepted.
        synchronized: statistics of the images of all workers.

    Raises:
        UserError: ResNet-20 with the stem for ImageNet.
    """

    def __init__(
        self,
        *,
        depth: int,
        stem: str,
        nonlinearity: str,
        biases: bool,
        affine: bool,
        classifier_bias: bool,
        classes: int,
        size: tuple[int, int],
        in_channels: int = 3,
        width_multiplier: float = 1.0,
        synchronized: bool = False,
    ) -> None:
        super().__init__()
        self.size = size
        self.checkpoint_blocks = False
        """Activation checkpointing: each block keeps only its input, and is recomputed in the backward pass."""
        if depth == 20 and stem != "cifar":
            raise UserError(
                "model.stem: ResNet-20 is defined for the CIFAR stem; use model.stem=cifar, or model.depth 18, 34 or 50"
            )
        kind = ResidualBlockConfig(
            bottleneck=depth == 50,
            nonlinearity=nonlinearity,
            affine=affine,
            biases=biases,
            synchronized=synchronized,
        )
        widths = [
            max(1, round(width_multiplier * (16 if depth == 20 else 64) * 2**stage))
            for stage in range(len(STAGES[depth]))
        ]
        side, stride = (7, 2) if stem == "imagenet" else (3, 1)
        channels = widths[0]
        self.conv1 = convolution(in_channels, channels, side, stride)
        self.bn1 = kind.normalization(channels)
        self.rho1 = Activation(nonlinearity, channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem == "imagenet" else nn.Identity()
        self.stages = len(widths)
        for stage, (width, blocks) in enumerate(zip(widths, STAGES[depth], strict=True)):
            layer = nn.Sequential()
            for number in range(blocks):
                block = ResidualBlock(channels, width, 2 if stage > 0 and number == 0 else 1, kind)
                layer.append(block)
                channels = block.out_channels
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(channels, classes, bias=classifier_bias)

    def blocks(self) -> list[ResidualBlock]:
        return [block for stage in range(self.stages) for block in getattr(self, f"layer{stage + 1}")]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BCHW = self.maxpool(self.rho1(self.bn1(self.conv1(images_BCHW))))
        for block in self.blocks():
            x_BCHW = activation_checkpointing.run_block(
                block, x_BCHW, checkpointed=self.checkpoint_blocks and self.training
            )
        return self.fc(x_BCHW.mean((2, 3)))

    def multiply_adds(self) -> int:
        """Multiply-adds of convolutions and classifier, for one image of `size` (H, W)."""
        size = _output_size(self.conv1, self.size)
        total = _multiply_adds(self.conv1, size) + self.fc.weight.numel()
        if isinstance(self.maxpool, nn.MaxPool2d):
            size = _halved(size)
        for block in self.blocks():
            for convolve, _, _ in block.layers():
                size = _output_size(convolve, size)
                total += _multiply_adds(convolve, size)
            # The shortcut's convolution ends at the size at which the block ends.
            total += sum(_multiply_adds(m, size) for m in block.downsample.modules() if isinstance(m, nn.Conv2d))
        return total


def convolution(in_channels: int, out_channels: int, side: int, stride: int) -> nn.Conv2d:
    """n pixels a side → ⌈n/stride⌉, without bias; weights start normal with variance 2/(out_channels·side²).

    These are torchvision's initial weights (Kaiming, fan out, gain of ReLU), for every ρ: N removes their scale.
    """
    kind = _Pointwise if side == 1 else nn.Conv2d
    result = kind(in_channels, out_channels, side, stride=stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(result.weight, mode="fan_out", nonlinearity="relu")
    # Channels last, the layout of the pixels and the fastest one for tensor cores.
    result.weight = nn.Parameter(result.weight.detach().contiguous(memory_format=torch.channels_last))
    return result


class _Pointwise(nn.Conv2d):
    """A 1×1 convolution that selects every stride-th pixel first, which gives the same result.

    On CPUs with AVX2 alone, torch's strided one (2.14, channels last, fewer than eight channels) has wrong gradients
    or does not terminate.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        rows, columns = self.stride
        return nn.functional.conv2d(x_BCHW[:, :, ::rows, ::columns], self.weight)


def _output_size(layer: nn.Conv2d, size: tuple[int, int]) -> tuple[int, int]:
    return _halved(size) if layer.stride == (2, 2) else size


def _halved(size: tuple[int, int]) -> tuple[int, int]:
    """⌈H/2⌉ and ⌈W/2⌉: (n + 2·⌊k/2⌋ − k)/2 + 1 rounded down, for an odd side k of the kernel."""
    return -(-size[0] // 2), -(-size[1] // 2)


def _multiply_adds(layer: nn.Conv2d, output: tuple[int, int]) -> int:
    return layer.weight.numel() * output[0] * output[1]
