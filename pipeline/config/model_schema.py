"""The settings of the networks: a section for each family."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.config.section import Positive, Section


class ScatteringSettings(Section):
    """The learned scattering network: fixed wavelets, a non-linearity, learned 1×1 projections."""

    family: Literal["scattering"] = "scattering"
    """Which networks: scattering, of phase collapses, or resnet."""
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (32, 64, 128, 128)
    """Complex channels after each block; their number is the depth."""
    width_multiplier: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Scales all `widths`, rounded to whole channels."""
    angles: Annotated[int, Field(ge=4, multiple_of=2)] = 4
    """L, the number of wavelet angles θ: even, at least 4."""
    first_factorized_block: Annotated[int, Field(ge=0)] = 0
    """Blocks before this one are full octaves (each subsamples); from it on, blocks alternate between the first half
    of an octave (no subsampling) and the second (subsampling)."""
    octaves: tuple[Literal["full", "first_half", "second_half"], ...] | None = None
    """The octave of each block, in any order, instead of what `first_factorized_block` makes of them."""
    nonlinearity: Literal["collapse", "threshold", "sigmoid", "tanh", "unit_modulus", "power", "identity"] = "collapse"
    """ρ, applied to the band-pass coefficients; collapse is the modulus |z|."""
    operator_gain: float | None = None
    """Gain a of ρ (sigmoid, power), where it starts or stays; by default 1."""
    operator_bias: float | None = None
    """Bias b of ρ (threshold, sigmoid, power), where it starts or stays; by default 0.1 for threshold, else 0."""
    operator_learned: bool = True
    """Learn gain and bias, one of each for each channel that ρ acts on; otherwise they stay as they start."""
    skip: bool = False
    """Keep the coefficients beside ρ of them: [y, ρ(y)] for y = [φ*x, ψ*x], instead of [φ*x, ρ(ψ*x)]."""
    projection: Literal["complex", "real"] = "complex"
    """Entries of the projections P_j: complex, as in the paper, or one real matrix for real and imaginary parts."""
    standardize: bool = True
    """Standardize each channel before the projection (zero mean, unit variance, nothing learned)."""
    normalize: bool = True
    """Divide by the norm across channels, at each position, after the projection."""
    classifier: Literal["flatten", "pooled"] = "flatten"
    """Linear classifier on all positions of the last block, or on their average."""
    classifier_normalization: Literal["affine", "plain", "none"] = "affine"
    """Batch normalization before the classifier: with a learned scale and shift, without them, or none at all."""
    classifier_bias: bool = True
    """Give the linear classifier a bias."""
    sync_batch_stats: bool = False
    """Standardize with the statistics of all workers' images together; by default, as published, each worker uses those
    of its own images."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Complex channels after each block: `widths` times `width_multiplier`."""
        return tuple(max(1, round(width * self.width_multiplier)) for width in self.widths)

    @model_validator(mode="after")
    def _check_octaves(self) -> Self:
        if self.octaves is not None and len(self.octaves) != len(self.widths):
            raise ValueError(f"octaves names {len(self.octaves)} blocks, and widths {len(self.widths)}")
        return self


class ResNetSettings(Section):
    """A residual network, with learned spatial filters, for comparison."""

    family: Literal["resnet"]
    """Which networks: scattering, of phase collapses, or resnet."""
    depth: Literal[18, 20, 34, 50] = 18
    """Layers; 20 is the network that He et al. made for CIFAR."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """First layer: 7×7 with stride 2 and max pooling, or 3×3 for images of 32 or 64 pixels."""
    width_multiplier: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Scales the channels of all layers, rounded to whole ones."""
    nonlinearity: Literal["relu", "absolute", "threshold", "tanh", "sigmoid", "rational"] = "relu"
    """absolute |x| is a phase collapse; threshold is two-sided with a learned threshold, sigmoid is sign(x)·σ(|x|),
    rational x/(1+|x|)."""
    affine: bool = True
    """Learn a scale in batch normalization."""
    biases: bool = True
    """Learn a shift in batch normalization."""
    classifier_bias: bool = True
    """Give the linear classifier a bias."""
    sync_batch_stats: bool = False
    """Batch statistics of all workers' images together; by default each worker uses those of its own images."""


def _family(model: Any) -> Any:
    """Which network a `model` section is for: a scattering network where it does not say."""
    return model.get("family", "scattering") if isinstance(model, dict) else getattr(model, "family", "scattering")


ModelSettings = Annotated[
    Annotated[ScatteringSettings, Tag("scattering")] | Annotated[ResNetSettings, Tag("resnet")],
    Discriminator(_family),
]
"""The network: one of the families, told apart by the field `family`."""
