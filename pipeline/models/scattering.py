"""The learned scattering network: wavelets, a non-linearity and a learned 1×1 projection, block after block.

    x_{j+1} = normalize( P_j · standardize( [φ*x_j, ρ(ψ*x_j)] ) )             without skip connection
    x_{j+1} = normalize( P_j · standardize( [y, ρ(y)] ) ),  y = [φ*x_j, ψ*x_j]    with it

ρ acts on each complex coefficient, P_j is a complex 1×1 convolution without bias, and normalize divides by the
Euclidean norm across channels at each position. Only P_j, the classifier, and what ρ may have to learn are learned.

Signals are (H, parts, W, B, C), see :mod:`pipeline.models.transform`. Channels of weights and statistics stand in the
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
from pipeline.models.operators import OPERATORS, PARAMETERS, amplitude
from pipeline.models.projection import Projection, normalize
from pipeline.models.transform import WaveletTransform, output_size
from pipeline.models.wavelets import octave_of_block

SMALLEST_SIDE = 3
"""Pixels that a block's input must have at least: below, reflecting its borders is not defined."""


@dataclass(frozen=True)
class BlockKind:
    """What all blocks of a network have in common; see `ModelSettings` for the choices."""

    nonlinearity: str = "collapse"
    operator_learned: bool = True
    operator_start: tuple[tuple[str, float], ...] = ()
    """Values of gain and bias, where they are not the operator's own."""
    skip: bool = False
    complex_projection: bool = True
    standardize: bool = True
    normalize: bool = True
    synchronized: bool = False


class Block(nn.Module):
    """One block of the network: x (H, parts, W, B, C) → (H', 2, W', B, C').

    Args:
        channels: C and C'.
        parts: 2 for a complex input, 1 for a real one.
    """

    def __init__(self, channels: tuple[int, int], parts: int, wavelets: WaveletTransform, kind: BlockKind) -> None:
        super().__init__()
        (self.in_channels, self.out_channels), self.parts, self.kind = channels, parts, kind
        self.wavelets = wavelets
        self.operator = OPERATORS[kind.nonlinearity]
        angles = wavelets.filters - 1
        self.operator_channels = self.in_channels * (angles + kind.skip)
        self.operator_parameters = PARAMETERS.get(kind.nonlinearity, {}) | {
            name: value
            for name, value in kind.operator_start
            if name in PARAMETERS.get(kind.nonlinearity, {})
        }
        for name, start in self.operator_parameters.items():
            value = torch.full((self.operator_channels,), start)
            if kind.operator_learned:
                self.register_parameter(f"operator_{name}", nn.Parameter(value))
            else:
                self.register_buffer(f"operator_{name}", value)
        self.projection = Projection(
            self.out_channels,
            self.in_channels * (1 + angles) + (self.operator_channels if kind.skip else 0),
            self._feature_index(angles),
            complex_entries=kind.complex_projection,
            standardize=kind.standardize,
            synchronized=kind.synchronized,
        )

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        y = self.projection(features.flatten(0, 4).flatten(1))
        y = y.view(*self.wavelets.output, features.shape[4], 2, self.out_channels)
        return normalize(y) if self.kind.normalize else y.permute(0, 3, 1, 2, 4).contiguous()

    def features(self, x: Tensor) -> Tensor:
        """Steps 1 and 2, brought together by position: (M, S, N, T, B, F, C), where M·S = H' and N·T = W'."""
        z = self.wavelets(x)
        if self.kind.nonlinearity == "collapse":
            return _CollapsedFeatures.apply(z, self.parts, self.kind.skip)
        acted_on = z if self.kind.skip else z[:, :, :, 1:]
        acted = self.operator(acted_on, *(self._by_filter(name) for name in self.operator_parameters))
        kept = z if self.kind.skip else z[:, :, :, :1]
        imaginary = kept[:, 1] if self.parts == 2 else kept[:, 1, :, 1:]
        return torch.cat([_by_position(part) for part in (kept[:, 0], imaginary, *acted.unbind(1))], dim=5)

    def multiply_adds(self) -> int:
        """Real multiplications with an addition, for one image: wavelets and projection, as they are executed."""
        rows, columns = self.wavelets.output
        wavelets = self.wavelets.multiply_adds(self.in_channels)
        return wavelets + rows * columns * self.projection.executed_multiply_adds()

    def necessary_multiply_adds(self) -> int:
        """Those of the projection alone, for one image, without multiplications by zero."""
        rows, columns = self.wavelets.output
        return rows * columns * self.projection.multiply_adds()

    def _by_filter(self, name: str) -> Tensor:
        """Gain or bias of ρ as (K, 1, 1, 1, C), for the K filters that ρ acts on."""
        parameter: Tensor = getattr(self, f"operator_{name}")
        low = self.in_channels if self.kind.skip else 0
        band = parameter[low:].view(self.in_channels, -1).T
        return torch.cat([parameter[None, :low], band] if low else [band])[:, None, None, None]

    def _feature_index(self, angles: int) -> Tensor:
        """For each real feature, in the order of `features`, its channel (imaginary parts: channels + channel)."""
        channels, filters = self.in_channels, 1 + angles
        band = channels + np.arange(channels) * angles + np.arange(angles)[:, None]
        y = np.concatenate([np.arange(channels)[None], band])  # (1 + L, C): the channel of each coefficient
        total = channels * filters * (2 if self.kind.skip else 1)
        kept = y if self.kind.skip else y[:1]
        acted = y + channels * filters if self.kind.skip else y[1:]
        columns = [kept, total + kept[2 - self.parts :], acted]
        if self.kind.nonlinearity != "collapse":
            columns.append(total + acted)
        return torch.from_numpy(np.concatenate(columns).reshape(-1))


def _by_position(z: Tensor) -> Tensor:
    """(S, T, K, M, N, B, C) seen as (M, S, N, T, B, K, C): rows, columns, then what is at each position."""
    return z.permute(3, 0, 4, 1, 5, 2, 6)


class _CollapsedFeatures(torch.autograd.Function):
    """[φ*x, |ψ*x|], or [y, |y|] with skip connection: z (S, 2, T, 1 + L, M, N, B, C) → (M, S, N, T, B, F, C).

    The same as the operators' general path, with a backward pass that goes over the coefficients once; the
    moduli that it needs are those in the features. Where the input is real, so is φ*x: its imaginary part is left out.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, parts: int, skip: bool) -> Tensor:
        kept = z.shape[3] if skip else 1
        r = amplitude(z if skip else z[:, :, :, 1:])
        columns = [z[:, 0, :, :kept], z[:, 1, :, 2 - parts : kept], r]
        features = torch.cat([_by_position(part) for part in columns], dim=5)
        ctx.save_for_backward(z, features)
        ctx.parts, ctx.kept = parts, kept
        return features

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        z, features = ctx.saved_tensors
        gradient, values = (f.permute(1, 3, 5, 0, 2, 4, 6) for f in (gradients[0], features))  # (S, T, F, …)
        # |z| of all filters, or of all but φ: then the column before them stands in for it, and is overwritten.
        last = values.shape[2] - z.shape[3]
        ratio = torch.div(gradient[:, :, last:], values[:, :, last:], out=torch.empty_like(z[:, 0]))
        z_gradient = z * ratio.unsqueeze(1)
        kept, first = ctx.kept, 2 - ctx.parts
        if kept == 1:
            z_gradient[:, 0, :, 0] = gradient[:, :, 0]
            z_gradient[:, 1, :, 0] = gradient[:, :, 1] if ctx.parts == 2 else 0
        else:
            z_gradient[:, 0] += gradient[:, :, :kept]
            z_gradient[:, 1, :, first:] += gradient[:, :, kept : 2 * kept - first]
        return z_gradient, None, None


class Classifier(nn.Module):
    """Batch normalization of real and imaginary parts (channels c re, c im), then a linear map of all positions or of
    their mean."""

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        classes: int,
        *,
        pooled: bool = False,
        normalization: str = "affine",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.pooled = pooled
        if normalization == "none":
            self.normalization: nn.Module = nn.Identity()
        else:
            self.normalization = nn.BatchNorm2d(2 * channels, affine=normalization == "affine")
        self.linear = nn.Linear(2 * channels * (1 if pooled else size[0] * size[1]), classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(3, 4, 1, 0, 2).flatten(1, 2)  # (B, 2·C, H, W)
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
        kind: BlockKind,
        classes: int,
        size: tuple[int, int],
        in_channels: int = 3,
        pooled: bool = False,
        normalization: str = "affine",
        bias: bool = True,
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
            wavelets = WaveletTransform(*size, octave, angles, parts)
            self.blocks.append(Block((channels, width), parts, wavelets, kind))
            channels, parts, size = width, 2, (output_size(size[0], octave), output_size(size[1], octave))
        self.classifier = Classifier(
            channels, size, classes, pooled=pooled, normalization=normalization, bias=bias
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.to_signal(images)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of each block, (H, 2, W, B, C)."""
        x, outputs = self.to_signal(images), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    @staticmethod
    def to_signal(images: Tensor) -> Tensor:
        """Images (B, C, H, W) as a real signal (H, 1, W, B, C), in the precision of autocast where that is on."""
        device = images.device.type
        if torch.is_autocast_enabled(device):
            images = images.to(torch.get_autocast_dtype(device))
        return images.permute(2, 3, 0, 1).unsqueeze(1)

    def multiply_adds(self) -> int:
        """Real multiplications with an addition that are executed in the forward pass of one image."""
        return sum(block.multiply_adds() for block in self.blocks) + self.classifier.multiply_adds()  # type: ignore[operator]
