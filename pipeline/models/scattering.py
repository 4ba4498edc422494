"""The learned scattering network: wavelets, a non-linearity and a learned 1×1 projection, block after block.

    x_{j+1} = normalize( P_j · standardize( [φ*x_j, ρ(ψ*x_j)] ) )             without skip connection
    x_{j+1} = normalize( P_j · standardize( [y, ρ(y)] ) ),  y = [φ*x_j, ψ*x_j]    with it

ρ acts on each complex coefficient, P_j is a complex 1×1 convolution without bias, and normalize divides by the
Euclidean norm across channels at each position. Only P_j, the classifier, and what ρ may have to learn are learned.

The steps of a block: 1 the wavelet transform, 2 ρ, 3 standardize, 4 P_j, 5 normalize. P_j acts on channels filter after
filter: φ*x of channel c is c, and ψ_θ of channel c at angle k is C + k·C + c; `published_order` translates from the
published code. Suffixes of tensors name their axes, the slowest first:

    B    images of a batch                     C    channels
    H W  rows and columns of pixels            P    real and imaginary part (one entry where a signal is real)
    M N  tiles along rows and columns          S T  rows and columns of pixels in a tile
    F    filters: φ, then ψ at L angles        G    filters after step 2: real parts, then the imaginary parts there are
    R    positions, H·W·B                      O    real and imaginary parts of the channels that P_j returns

    x_HPWBC            a signal                z_SPTFMNBC         its coefficients, the result of step 1
    features_MSNTBGC   the result of step 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_prep.common.errors import UserError
from pipeline.models import kernels, nonlinearities
from pipeline.models.batch_stats import BatchNorm
from pipeline.models.fused import by_position, collapsed_features, normalize
from pipeline.models.projection import Projection
from pipeline.models.tiling import CPU_TILES, Tiles
from pipeline.models.wavelet_transform import WaveletTransform, output_size
from pipeline.models.wavelets import Octave
from pipeline.runtime import activation_checkpointing

SMALLEST_SIDE = 3
"""Smallest side of a block's input, in pixels: the reflection of a smaller one is undefined."""


@dataclass(frozen=True)
class BlockConfig:
    """Settings that all blocks of a scattering network share; see `ScatteringSettings`."""

    nonlinearity: str = "collapse"
    operator_gain: float | None = None
    operator_bias: float | None = None
    operator_learned: bool = True
    skip: bool = False
    complex_projection: bool = True
    standardize: bool = True
    normalize: bool = True
    synchronized: bool = False

    def nonlinearity_parameters(self) -> dict[str, float]:
        """The parameters of ρ, such as gain and bias, with their initial values.

        Raises:
            UserError: ρ is unknown, or a value is given for a parameter that it does not have.
        """
        values = dict(nonlinearities.find(self.nonlinearity).parameters)
        for name, chosen in (("gain", self.operator_gain), ("bias", self.operator_bias)):
            if chosen is not None and name not in values:
                raise UserError(f"model.operator_{name}: {self.nonlinearity} has no {name}; leave it out")
            if chosen is not None:
                values[name] = chosen
        return values


class Block(nn.Module):
    """One block of the network: x (H, P, W, B, C) → (H', 2, W', B, C').

    Args:
        channels: C and C'.
        parts: P, 2 for a complex input, 1 for a real one.
        wavelets: the transform of step 1, for the size of x.
        kind: the settings of steps 2 to 5.
    """

    def __init__(self, channels: tuple[int, int], parts: int, wavelets: WaveletTransform, kind: BlockConfig) -> None:
        super().__init__()
        self.in_channels, self.out_channels = channels
        self.parts, self.kind = parts, kind
        self.wavelets = wavelets
        self.nonlinearity = nonlinearities.find(kind.nonlinearity)
        self.nonlinearity_parameters = kind.nonlinearity_parameters()
        acted_on = wavelets.filters if kind.skip else wavelets.filters - 1
        for name, start in self.nonlinearity_parameters.items():
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
            # φ*x of a real x is real, and so is the result of some ρ.
            range(self.in_channels * (2 - parts), kept if self.nonlinearity.real else total),
            complex_entries=kind.complex_projection,
            standardize=kind.standardize,
            synchronized=kind.synchronized,
        )

    def forward(self, x_HPWBC: Tensor) -> Tensor:
        z_SPTFMNBC = self.wavelets(x_HPWBC)  # step 1
        collapsed = self.nonlinearity.fused_features is collapsed_features
        if collapsed and self.kind.standardize and self.projection.training and kernels.of(z_SPTFMNBC):
            y_RO = self.projection.of_moduli(z_SPTFMNBC, self.parts, self.kind.skip)  # steps 2 to 4
        else:
            y_RO = self.projection(self.act(z_SPTFMNBC).flatten(0, 4).flatten(1))
        y_HWBPC = y_RO.view(*self.wavelets.output, x_HPWBC.shape[3], 2, self.out_channels)
        return normalize(y_HWBPC) if self.kind.normalize else y_HWBPC.permute(0, 3, 1, 2, 4).contiguous()  # step 5

    def features(self, x_HPWBC: Tensor) -> Tensor:
        """Steps 1 and 2: x (H, P, W, B, C) → (M, S, N, T, B, G, C), where M·S = H' and N·T = W'."""
        return self.act(self.wavelets(x_HPWBC))

    def act(self, z_SPTFMNBC: Tensor) -> Tensor:
        """Step 2, [φ*x, ρ(ψ*x)] or [y, ρ(y)]: z (S, 2, T, F, M, N, B, C) → (M, S, N, T, B, G, C)."""
        skip, dtype = self.kind.skip, z_SPTFMNBC.dtype
        if self.nonlinearity.fused_features is not None and not torch.compiler.is_compiling():
            # A compiler fuses the general path below, which computes the same.
            return self.nonlinearity.fused_features(z_SPTFMNBC, self.parts, skip)
        acted_on = z_SPTFMNBC if skip else z_SPTFMNBC[:, :, :, 1:]  # y, or ψ*x
        parameters = (getattr(self, f"operator_{name}")[:, None, None, None] for name in self.nonlinearity_parameters)
        # Under autocast, float32 parameters and what a GPU computes in float32 would make all that follows float32.
        acted = self.nonlinearity.function(acted_on, *(value.to(dtype) for value in parameters)).to(dtype)
        kept = z_SPTFMNBC if skip else z_SPTFMNBC[:, :, :, :1]  # y, or φ*x
        # Real parts of both, then imaginary parts: φ*x of a real x has none, and neither has a real ρ.
        features = [kept[:, 0], acted[:, 0], kept[:, 1, :, 2 - self.parts :], *acted.unbind(1)[1:]]
        return torch.cat([by_position(each_STFMNBC) for each_STFMNBC in features], dim=5)

    def multiply_adds(self) -> int:
        """Real multiply-adds that are executed for one image, in wavelet transform and projection."""
        rows, columns = self.wavelets.output
        wavelets = self.wavelets.multiply_adds(self.in_channels)
        return wavelets + rows * columns * self.projection.multiply_adds()


def published_order(channels: int, angles: int, skip: bool) -> NDArray[np.int64]:
    """Index of each channel in the code published with the paper, where ψ_θ of channel c at angle k is C + c·L + k.

    The channels here are ``theirs[..., published_order(C, L, skip)]``.
    """
    band = channels + np.arange(angles)[:, None] + angles * np.arange(channels)
    order = np.concatenate([np.arange(channels), band.reshape(-1)])
    return np.concatenate([order, order + len(order)]) if skip else order


class Classifier(nn.Module):
    """Batch normalization of real and imaginary parts, then a linear map: x (H, 2, W, B, C) → logits (B, classes).

    Args:
        channels: C; normalization sees 2·C real ones, re and im of each in turn.
        size: (H, W).
        pooled: map the mean of all positions, instead of all of them.
        normalization: 'affine', 'plain' (nothing learned) or 'none'.
        bias: of the linear map.
        synchronized: statistics of the images of all workers.
    """

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

    def forward(self, x_HPWBC: Tensor) -> Tensor:
        x_BCHW = self.normalization(x_HPWBC.permute(3, 4, 1, 0, 2).flatten(1, 2))  # 2·C channels
        return self.linear(x_BCHW.mean((2, 3)) if self.pooled else x_BCHW.flatten(1))

    def multiply_adds(self) -> int:
        return self.linear.in_features * self.linear.out_features


class ScatteringNetwork(nn.Module):
    """Normalized images (B, 3, H, W) → logits (B, classes).

    Args:
        widths: complex channels after each block.
        octaves: octave of each block; see `octaves_of_blocks`.
        angles: L, the number of wavelet angles.
        kind: the settings that all blocks share.
        classes: number of logits.
        size: (H, W) of the images.
        in_channels: channels of the images.
        pooled, normalization, bias: of the `Classifier`.
        tiles: of the wavelet transforms, by the device that computes.

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
        tiles: Tiles = CPU_TILES,
    ) -> None:
        super().__init__()
        self.size, self.blocks = tuple(size), nn.ModuleList()
        self.checkpoint_blocks = False
        """Activation checkpointing: each block keeps only its input, and is recomputed in the backward pass."""
        channels, parts, input_size = in_channels, 1, size
        for number, (width, octave) in enumerate(zip(widths, octaves, strict=True)):
            if min(size) < SMALLEST_SIDE:
                raise UserError(
                    f"model.widths: block {number} of {len(widths)} would filter {size[0]}×{size[1]} pixels "
                    f"for images of {input_size[0]}×{input_size[1]}, and needs {SMALLEST_SIDE}×{SMALLEST_SIDE}; "
                    "use fewer blocks or larger images (data.image_size)"
                )
            wavelets = WaveletTransform(*size, octave, angles, parts, tiles)
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

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_HPWBC = self.to_signal(images_BCHW)
        for block in self.blocks:
            x_HPWBC = activation_checkpointing.run_block(
                block, x_HPWBC, checkpointed=self.checkpoint_blocks and self.training
            )
        return self.classifier(x_HPWBC)

    def features(self, images_BCHW: Tensor) -> list[Tensor]:
        """The output of each block, (H, 2, W, B, C)."""
        x_HPWBC, outputs = self.to_signal(images_BCHW), []
        for block in self.blocks:
            x_HPWBC = block(x_HPWBC)
            outputs.append(x_HPWBC)
        return outputs

    def to_signal(self, images_BCHW: Tensor) -> Tensor:
        """Images (B, C, H, W) as a real signal (H, 1, W, B, C), in the precision of autocast where that is on.

        Raises:
            ValueError: the images have another size than the network was built for.
        """
        if images_BCHW.shape[2:] != self.size:
            given, built_for = ("×".join(map(str, size)) for size in (images_BCHW.shape[2:], self.size))
            raise ValueError(f"images of {given} pixels for a network that was built for {built_for}: resize them")
        device = images_BCHW.device.type
        if torch.is_autocast_enabled(device):
            images_BCHW = images_BCHW.to(torch.get_autocast_dtype(device))
        return images_BCHW.permute(2, 3, 0, 1).unsqueeze(1)

    def multiply_adds(self) -> int:
        """Real multiply-adds that are executed in the forward pass of one image."""
        return sum(block.multiply_adds() for block in self.blocks) + self.classifier.multiply_adds()  # type: ignore[operator]
