"""The learned scattering network: wavelets, a non-linearity and a learned 1×1 projection, block after block.

    x_{j+1} = normalize( P_j · standardize( [φ*x_j, ρ(ψ*x_j)] ) )             without skip connection
    x_{j+1} = normalize( P_j · standardize( [y, ρ(y)] ) ),  y = [φ*x_j, ψ*x_j]    with it

ρ acts on each complex coefficient, P_j is a complex 1×1 convolution without bias, and normalize divides by the
Euclidean norm across channels at each position. Only P_j, the classifier, and what ρ may have to learn are learned.

Signals are (H, W, parts, B, C), see :mod:`pipeline.models.transform`. Channels of weights and statistics stand in the
order of the paper's code: φ*x is channel c = 0 … C−1, and ψ_θ of channel c at angle k is C + c·L + k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_prep.errors import UserError
from pipeline.models.operators import LEARNED, OPERATORS
from pipeline.models.transform import WaveletTransform, output_size
from pipeline.models.wavelets import octave_of_block

SMALLEST_SIDE = 3
"""Pixels that a block's input must have at least: below, reflecting its borders is not defined."""


@dataclass(frozen=True)
class BlockShape:
    """Where a block stands: its input (C, H, W), complex or real, and its output."""

    in_channels: int
    out_channels: int
    size: tuple[int, int]
    parts: int


class Standardization(nn.Module):
    """Zero mean and unit variance for each complex channel (step 3), with running statistics for evaluation.

    The mean is complex and the variance E|z − mean|². Nothing is learned. In training, the statistics are those of this
    worker's batch, as published.

    Args:
        index: (F,) for each real feature its place in (2·in): channel, or in + channel for an imaginary part.
    """

    running_mean: Tensor
    running_var: Tensor
    index: Tensor

    epsilon = 1e-5
    momentum = 0.1

    def __init__(self, channels: int, index: Tensor) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("running_mean", torch.zeros(2, channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("index", index, persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (…, F) minus their mean, and what they are still to be multiplied with: 1/deviation (F,).

        The projection that follows takes the second factor into its matrix, which saves a pass over the features.
        """
        if self.training:
            centered, variance = self._measure(features)
        else:
            mean = self.running_mean.reshape(-1)[self.index]
            centered, variance = features - mean.to(features.dtype), self.running_var
        return centered, torch.rsqrt(self.epsilon + variance)[self.index % self.channels]

    def _measure(self, features: Tensor) -> tuple[Tensor, Tensor]:
        count = features.numel() // features.shape[-1]
        centered, feature_mean, feature_variance = _Center.apply(features)
        zeros = feature_variance.new_zeros(2 * self.channels)
        variance = zeros.index_copy(0, self.index, feature_variance).view(2, -1).sum(0)
        with torch.no_grad():
            mean = zeros.index_copy(0, self.index, feature_mean).view(2, -1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return centered, variance


class _Center(torch.autograd.Function):
    """x − mean, mean and mean (x − mean)² over all axes but the last, the moments in float32 at least.

    Written out because its backward pass is one sum and one multiplication with addition, where autograd would keep
    and walk through several copies of x. The mean is returned for the running statistics, without a derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        precise = torch.promote_types(x.dtype, torch.float32)  # bfloat16 has 8 bits, too few for sums
        axes, count = tuple(range(x.ndim - 1)), x.numel() // x.shape[-1]
        mean = x.sum(axes, dtype=precise) / count
        centered = x - mean.to(x.dtype)
        variance = (centered * centered).sum(axes, dtype=precise) / count
        ctx.save_for_backward(centered)
        ctx.mark_non_differentiable(mean)
        return centered, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (centered,) = ctx.saved_tensors
        gradient, _, variance_gradient = gradients
        axes, count = tuple(range(centered.ndim - 1)), centered.numel() // centered.shape[-1]
        offset = gradient.sum(axes, dtype=variance_gradient.dtype) / count
        scale = 2 / count * variance_gradient
        return torch.addcmul(gradient - offset.to(gradient.dtype), centered, scale.to(centered.dtype))


class Block(nn.Module):
    """One block of the network: (H, W, parts, B, C) → (H', W', 2, B, C')."""

    index: Tensor

    def __init__(self, shape: BlockShape, wavelets: WaveletTransform, nonlinearity: str, skip: bool) -> None:
        super().__init__()
        channels, angles = shape.in_channels, len(wavelets.angle_order)
        self.shape, self.skip = shape, skip
        self.wavelets = wavelets
        self.operator = OPERATORS[nonlinearity]
        self.operator_channels = channels * angles + (channels if skip else 0)
        self.in_channels = channels * (1 + angles) + (self.operator_channels if skip else 0)
        for name, start in LEARNED.get(nonlinearity, {}).items():
            self.register_parameter(f"operator_{name}", nn.Parameter(torch.full((self.operator_channels,), start)))
        self.operator_parameters = tuple(LEARNED.get(nonlinearity, {}))
        parts_after = 1 if nonlinearity == "collapse" else 2
        self.register_buffer("index", self._feature_index(angles, parts_after), persistent=False)
        self.standardization = Standardization(self.in_channels, self.index)
        self.weight = nn.Parameter(orthonormal(shape.out_channels, self.in_channels))

    def forward(self, x: Tensor) -> Tensor:
        centered, deviation = self.standardization(self.features(x))
        return normalize(self.project(centered, deviation))

    def features(self, x: Tensor) -> Tensor:
        """Steps 1 and 2, as real numbers (H', W', B, F): the parts of a complex channel are two features."""
        low, band = self.wavelets(x)
        kept = [low, *band] if self.skip else [low]
        acted_on = [low, *band] if self.skip else band
        acted = [self.operator(_complex(z), *p) for z, p in zip(acted_on, self._parameters_of(acted_on), strict=True)]
        # The one pass that brings the channels of a position together, as the projection wants them.
        return torch.cat([bundle.flatten(2, 3).transpose(2, 3) for bundle in [*kept, *acted]], dim=3).flatten(3)

    def project(self, centered: Tensor, deviation: Tensor) -> Tensor:
        """Steps 3 and 4 as one real matrix, P_j·diag(1/deviation): (H', W', B, F) → (H', W', B, 2, C')."""
        real, imaginary = self.weight
        columns = torch.cat([torch.cat([real, imaginary]), torch.cat([-imaginary, real])], dim=1)  # (2·out, 2·in)
        y = nn.functional.linear(centered, columns[:, self.index] * deviation)
        return y.unflatten(-1, (2, self.shape.out_channels))

    def multiply_adds(self) -> int:
        """Real multiplications with an addition, for one image: wavelets and projection."""
        return self.wavelets.multiply_adds(self.shape.in_channels) + self.projection_multiply_adds()

    def projection_multiply_adds(self) -> int:
        """Those of the projection alone."""
        rows, columns = self.wavelets.output
        return rows * columns * len(self.index) * 2 * self.shape.out_channels

    def _parameters_of(self, bundles: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Gain and bias for the channels of each bundle, each (K, 1, 1, C) for a bundle (H', W', K, 2, B, C)."""
        channels, order = self.shape.in_channels, self.wavelets.angle_order
        low_channels = channels if self.skip else 0
        result, done = [], 0
        for bundle in bundles:
            angles = bundle.shape[2]
            values = []
            for name in self.operator_parameters:
                parameter = getattr(self, f"operator_{name}")
                if self.skip and bundle is bundles[0]:
                    values.append(parameter[:channels])
                else:
                    by_angle = parameter[low_channels:].view(channels, -1).T
                    values.append(by_angle[order[done : done + angles], None, None, :])
            done += 0 if self.skip and bundle is bundles[0] else angles
            result.append(tuple(values))
        return result

    def _feature_index(self, angles: int, parts_after: int) -> Tensor:
        """For each real feature, in the order of `features`, its channel (imaginary parts: channels + channel)."""
        channels = self.shape.in_channels
        low = np.arange(channels)[None]  # (K, C)
        band = np.arange(channels) * angles + np.array(self.wavelets.angle_order)[:, None]
        first_band = channels
        if self.skip:
            acted = self.in_channels - self.operator_channels
            bundles = [
                (low, self.shape.parts),
                (first_band + band, 2),
                (acted + low, parts_after),
                (acted + channels + band, parts_after),
            ]
        else:
            bundles = [(low, self.shape.parts), (first_band + band, parts_after)]
        parts = [np.stack([ch + part * self.in_channels for part in range(n)], axis=1) for ch, n in bundles]
        return torch.from_numpy(np.concatenate([p.reshape(-1) for p in parts]))


class Classifier(nn.Module):
    """Batch normalization of real and imaginary parts (channels c re, c im), then a linear map of all positions or of
    their mean."""

    def __init__(self, channels: int, size: tuple[int, int], classes: int, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.normalization = nn.BatchNorm2d(2 * channels)
        self.linear = nn.Linear(2 * channels * (1 if pooled else size[0] * size[1]), classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(3, 4, 2, 0, 1).flatten(1, 2)  # (B, 2·C, H, W)
        x = self.normalization(x)
        return self.linear(x.mean((2, 3)) if self.pooled else x.flatten(1))

    def multiply_adds(self) -> int:
        return self.linear.in_features * self.linear.out_features


class ScatteringNetwork(nn.Module):
    """Normalized images (B, 3, H, W) → logits (B, classes).

    Args:
        widths: complex channels after each block.
        angles: L, the number of wavelet angles.
        size: (H, W) of the images.

    Raises:
        UserError: the input of a block would be smaller than 3 pixels; names the block, counted from 0.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        angles: int,
        first_factorized_block: int,
        nonlinearity: str,
        skip: bool,
        pooled: bool,
        classes: int,
        size: tuple[int, int],
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels, parts, input_size = in_channels, 1, size
        for number, width in enumerate(widths):
            if min(size) < SMALLEST_SIDE:
                raise UserError(
                    f"model.widths: block {number} of {len(widths)} would filter {size[0]}×{size[1]} pixels "
                    f"for images of {input_size[0]}×{input_size[1]}, and needs {SMALLEST_SIDE}×{SMALLEST_SIDE}; "
                    "use fewer blocks or larger images (data.image_size)"
                )
            octave = octave_of_block(number, first_factorized_block)
            output = (output_size(size[0], octave), output_size(size[1], octave))
            shape = BlockShape(channels, width, size, parts)
            wavelets = WaveletTransform(*size, octave, angles, parts)
            self.blocks.append(Block(shape, wavelets, nonlinearity, skip))
            channels, parts, size = width, 2, output
        self.classifier = Classifier(channels, size, classes, pooled)

    def forward(self, images: Tensor) -> Tensor:
        x = self.to_signal(images)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of each block, (H, W, 2, B, C)."""
        x, outputs = self.to_signal(images), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    @staticmethod
    def to_signal(images: Tensor) -> Tensor:
        """Images (B, C, H, W) as a real signal (H, W, 1, B, C), in the precision of autocast where that is on."""
        device = images.device.type
        if torch.is_autocast_enabled(device):
            images = images.to(torch.get_autocast_dtype(device))
        return images.permute(2, 3, 0, 1).unsqueeze(2)

    def multiply_adds(self) -> int:
        """Real multiplications with an addition, for the forward pass of one image."""
        return sum(block.multiply_adds() for block in self.blocks) + self.classifier.multiply_adds()  # type: ignore[operator]


def orthonormal(out_channels: int, in_channels: int) -> Tensor:
    """A random complex matrix with orthonormal rows, W Wᴴ = 1 (columns where out > in), as (2, out, in) reals."""
    tall, narrow = max(out_channels, in_channels), min(out_channels, in_channels)
    q, _ = torch.linalg.qr(torch.randn(tall, narrow, dtype=torch.complex128))
    weight = q.mH if out_channels <= in_channels else q
    return torch.view_as_real(weight.resolve_conj()).permute(2, 0, 1).to(torch.get_default_dtype()).contiguous()


def normalize(y: Tensor) -> Tensor:
    """Divides (H, W, B, 2, C) by its norm across channels at each position (step 5): a signal (H, W, 2, B, C)."""
    return _Normalize.apply(y)


class _Normalize(torch.autograd.Function):
    """y/‖y‖, written in the order of axes that the next block reads: a pass over the numbers that is needed anyway."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        precise = torch.promote_types(y.dtype, torch.float32)
        norm = torch.linalg.vector_norm(y, dim=(3, 4), keepdim=True, dtype=precise)
        inverse = norm.clamp_min(torch.finfo(precise).tiny).reciprocal().to(y.dtype).transpose(2, 3)
        height, width, batch, parts, channels = y.shape
        output = y.new_empty(height, width, parts, batch, channels)
        torch.mul(y.transpose(2, 3), inverse, out=output)
        ctx.save_for_backward(output, inverse)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        output, inverse = ctx.saved_tensors
        precise = torch.promote_types(output.dtype, torch.float32)
        along = (gradients[0] * output).sum((2, 4), keepdim=True, dtype=precise).to(output.dtype)
        return (torch.addcmul(gradients[0], output, along, value=-1) * inverse).transpose(2, 3)


def _complex(z: Tensor) -> Tensor:
    """A real bundle (…, 1, B, C) as a complex one with zero imaginary part: φ*x in the first block, where x is real."""
    return z if z.shape[-3] == 2 else torch.cat([z, torch.zeros_like(z)], dim=-3)
