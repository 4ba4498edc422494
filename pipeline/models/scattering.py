"""The learned scattering network: wavelets, a non-linearity and a learned 1×1 projection, block after block.

    x_{j+1} = normalize( P_j · standardize( [φ*x_j, ρ(ψ*x_j)] ) )             without skip connection
    x_{j+1} = normalize( P_j · standardize( [y, ρ(y)] ) ),  y = [φ*x_j, ψ*x_j]    with it

ρ acts on each complex coefficient, P_j is a complex 1×1 convolution without bias, and normalize divides by the
Euclidean norm across channels at each position. Only P_j, the classifier, and what ρ may have to learn are learned.

Signals are (H, parts, W, B, C), see :mod:`pipeline.models.wavelet_transform`. What P_j acts on are channels filter
after filter: φ*x of channel c is c, and ψ_θ of channel c at angle k is C + k·C + c; `published_order` translates
from other code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.common.errors import UserError
from pipeline.models.batch_stats import BatchNorm
from pipeline.models.fused import by_position, collapsed_features, normalize
from pipeline.models.nonlinearities import OPERATORS, PARAMETERS
from pipeline.models.projection import Projection
from pipeline.models.wavelet_transform import WaveletTransform, output_size
from pipeline.models.wavelets import Octave
from pipeline.runtime import activation_checkpointing

SMALLEST_SIDE = 3
"""Pixels that a block's input must have at least: below, reflecting its borders is not defined."""


@dataclass(frozen=True)
class BlockConfig:
    """What all blocks of a network have in common; see `ScatteringSettings` for the choices."""

    nonlinearity: str = "collapse"
    operator_gain: float | None = None
    operator_bias: float | None = None
    operator_learned: bool = True
    skip: bool = False
    complex_projection: bool = True
    standardize: bool = True
    normalize: bool = True
    synchronized: bool = False

    def operator_parameters(self) -> dict[str, float]:
        """Gain and bias of ρ, those that it has, and where they start.

        Raises:
            UserError: a value is given for one that ρ does not have.
        """
        values = dict(PARAMETERS[self.nonlinearity])
        for name, chosen in (("gain", self.operator_gain), ("bias", self.operator_bias)):
            if chosen is not None and name not in values:
                raise UserError(f"model.operator_{name}: {self.nonlinearity} has no {name}; leave it out")
            if chosen is not None:
                values[name] = chosen
        return values


class Block(nn.Module):
    """One block of the network: x (H, parts, W, B, C) → (H', 2, W', B, C').

    Args:
        channels: C and C'.
        parts: 2 for a complex input, 1 for a real one.
    """

    def __init__(self, channels: tuple[int, int], parts: int, wavelets: WaveletTransform, kind: BlockConfig) -> None:
        super().__init__()
        self.in_channels, self.out_channels = channels
        self.parts, self.kind = parts, kind
        self.wavelets = wavelets
        self.operator = OPERATORS[kind.nonlinearity]
        self.operator_parameters = kind.operator_parameters()
        acted_on = wavelets.filters if kind.skip else wavelets.filters - 1
        for name, start in self.operator_parameters.items():
            value = torch.full((acted_on, self.in_channels), start)
            if kind.operator_learned:
                self.register_parameter(f"operator_{name}", nn.Parameter(value))
            else:
                self.register_buffer(f"operator_{name}", value)
        kept = self.in_channels * (wavelets.filters if kind.skip else 1)
        total = kept + self.in_channels * acted_on
        self.projection = Projection(
            self.out_channels,
            total,
            # φ*x of a real x is real, and so are moduli.
            range(self.in_channels * (2 - parts), kept if kind.nonlinearity == "collapse" else total),
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
        """Steps 1 and 2: x → (M, S, N, T, B, F, C), where M·S = H' and N·T = W'."""
        return self.act(self.wavelets(x))

    def act(self, z: Tensor) -> Tensor:
        """Step 2, and what P_j acts on brought together by position: z → (M, S, N, T, B, F, C)."""
        if self.kind.nonlinearity == "collapse" and not torch.compiler.is_compiling():
            # Fused by hand; a compiler fuses the general path, which computes the same.
            return collapsed_features(z, self.parts, self.kind.skip)
        acted_on = z if self.kind.skip else z[:, :, :, 1:]
        parameters = (getattr(self, f"operator_{name}")[:, None, None, None] for name in self.operator_parameters)
        # Under autocast, float32 parameters and what a GPU computes in float32 would make all that follows float32.
        acted = self.operator(acted_on, *(value.to(z.dtype) for value in parameters)).to(z.dtype)
        kept = z if self.kind.skip else z[:, :, :, :1]
        parts = [kept[:, 0], acted[:, 0], kept[:, 1, :, 2 - self.parts :], *acted.unbind(1)[1:]]
        return torch.cat([by_position(part) for part in parts], dim=5)

    def multiply_adds(self) -> int:
        """Real multiplications with an addition, for one image: wavelets and projection, as they are executed."""
        rows, columns = self.wavelets.output
        wavelets = self.wavelets.multiply_adds(self.in_channels)
        return wavelets + rows * columns * self.projection.multiply_adds()


def published_order(channels: int, angles: int, skip: bool) -> NDArray[np.int64]:
    """Where each of our channels stands in the code published with the paper, which counts ψ_θ of channel c at angle k
    as C + c·L + k: ours are ``theirs[..., published_order(C, L, skip)]``."""
    band = channels + np.arange(angles)[:, None] + angles * np.arange(channels)
    order = np.concatenate([np.arange(channels), band.reshape(-1)])
    return np.concatenate([order, order + len(order)]) if skip else order


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
        synchronized: bool = False,
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.normalization: nn.Module = nn.Identity()
        if normalization != "none":
            affine = normalization == "affine"
            self.normalization = BatchNorm(2 * channels, scale=affine, shift=affine, synchronized=synchronized)
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
        octaves: of each block; see `octaves_of_blocks`.
        angles: L, the number of wavelet angles.
        size: (H, W) of the images.
        pooled, normalization, bias: of the classifier; normalization is affine, plain or none.

    Raises:
        UserError: the input of a block would be smaller than 3 pixels; names the block, counted from 0.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        octaves: Sequence[Octave],
        angles: int,
        kind: BlockConfig,
        classes: int,
        size: tuple[int, int],
        in_channels: int = 3,
        pooled: bool = False,
        normalization: str = "affine",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.size, self.blocks = tuple(size), nn.ModuleList()
        self.recompute = False
        """Blocks run again in the backward pass, for which they keep only their input."""
        channels, parts, input_size = in_channels, 1, size
        for number, (width, octave) in enumerate(zip(widths, octaves, strict=True)):
            if min(size) < SMALLEST_SIDE:
                raise UserError(
                    f"model.widths: block {number} of {len(widths)} would filter {size[0]}×{size[1]} pixels "
                    f"for images of {input_size[0]}×{input_size[1]}, and needs {SMALLEST_SIDE}×{SMALLEST_SIDE}; "
                    "use fewer blocks or larger images (data.image_size)"
                )
            wavelets = WaveletTransform(*size, octave, angles, parts)
            self.blocks.append(Block((channels, width), parts, wavelets, kind))
            channels, parts, size = width, 2, (output_size(size[0], octave), output_size(size[1], octave))
        self.classifier = Classifier(
            channels,
            size,
            classes,
            pooled=pooled,
            normalization=normalization,
            bias=bias,
            synchronized=kind.synchronized,
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.to_signal(images)
        for block in self.blocks:
            x = activation_checkpointing.run(block, x, recompute=self.recompute and self.training)
        return self.classifier(x)

    def features(self, images: Tensor) -> list[Tensor]:
        """The output of each block, (H, 2, W, B, C)."""
        x, outputs = self.to_signal(images), []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return outputs

    def to_signal(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as a real signal (H, 1, W, B, C), in the precision of autocast where that is on.

        Raises:
            ValueError: they are of another size than the network was built for.
        """
        if images.shape[2:] != self.size:
            given, built_for = ("×".join(map(str, size)) for size in (images.shape[2:], self.size))
            raise ValueError(f"images of {given} pixels for a network that was built for {built_for}: resize them")
        device = images.device.type
        if torch.is_autocast_enabled(device):
            images = images.to(torch.get_autocast_dtype(device))
        return images.permute(2, 3, 0, 1).unsqueeze(1)

    def multiply_adds(self) -> int:
        """Real multiplications with an addition that are executed in the forward pass of one image."""
        return sum(block.multiply_adds() for block in self.blocks) + self.classifier.multiply_adds()  # type: ignore[operator]
