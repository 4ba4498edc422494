"""The settings of the networks: a section for each family."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.config.registered import Registered
from pipeline.config.section import Positive, Section

MAXIMUM_WIDTH = 8192
"""Complex channels; bounds the memory that the settings of a foreign checkpoint can ask for."""


class ScatteringSettings(Section):
    """A learned scattering network: fixed wavelets, a non-linearity, learned 1×1 projections."""

    family: Literal["scattering"] = "scattering"
    """Family of the network."""
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (32, 64, 128, 128)
    """Complex channels after each block; the number of widths is the number of blocks."""
    width_multiplier: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor for all `widths`, rounded to whole channels."""
    angles: Annotated[int, Field(ge=4, multiple_of=2)] = 4
    """Number L of wavelet angles θ: even, at least 4."""
    first_factorized_block: Annotated[int, Field(ge=0)] = 0
    """Index of the first factorized block. Blocks before it are full octaves (each subsamples); from it on, blocks
    alternate between the first half of an octave (no subsampling) and the second (subsampling)."""
    octaves: tuple[Literal["full", "first_half", "second_half"], ...] | None = None
    """Octave of each block, in any order; by default `first_factorized_block` decides."""
    nonlinearity: Annotated[str, Registered("pipeline.models.nonlinearities:NONLINEARITIES")] = "collapse"
    """ρ, applied to the band-pass coefficients; collapse is the modulus |z|."""
    operator_gain: float | None = None
    """Gain a of ρ (sigmoid, power): its initial value, or its value if it is not learned; by default 1."""
    operator_bias: float | None = None
    """Bias b of ρ (threshold, sigmoid, power): its initial value, or its value if it is not learned; by default 0.1 for
    threshold, otherwise 0."""
    operator_learned: bool = True
    """Learn gain and bias, one of each per channel that ρ is applied to; if false, they keep their initial values."""
    skip: bool = False
    """Concatenate the coefficients with ρ of them: [y, ρ(y)], with y = [φ*x, ψ*x], instead of [φ*x, ρ(ψ*x)]."""
    projection: Literal["complex", "real"] = "complex"
    """Entries of the projections P_j: complex, as in the paper, or one real matrix for real and imaginary parts."""
    standardize: bool = True
    """Standardize each channel before the projection (zero mean, unit variance, nothing learned)."""
    normalize: bool = True
    """Divide by the norm across channels, at each position, after the projection."""
    classifier: Literal["flatten", "pooled"] = "flatten"
    """Input of the linear classifier: all positions of the last block, or their average."""
    classifier_normalization: Literal["affine", "plain", "none"] = "affine"
    """Batch normalization before the classifier: with a learned scale and shift, without them, or none."""
    classifier_bias: bool = True
    """Give the linear classifier a bias."""
    sync_batch_stats: bool = False
    """Standardize with batch statistics over all workers; if false, as published, each worker uses the statistics of
    its own images."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Complex channels after each block: `widths` times `width_multiplier`."""
        return tuple(max(1, round(width * self.width_multiplier)) for width in self.widths)

    @model_validator(mode="after")
    def _check_blocks(self) -> Self:
        if self.octaves is not None and len(self.octaves) != len(self.widths):
            raise ValueError(f"octaves names {len(self.octaves)} blocks, and widths {len(self.widths)}")
        if max(self.channels) > MAXIMUM_WIDTH:
            raise ValueError(f"widths times width_multiplier must be at most {MAXIMUM_WIDTH}, not {max(self.channels)}")
        return self


class ResNetSettings(Section):
    """A residual network with learned spatial filters, for comparison."""

    family: Literal["resnet"]
    """Family of the network."""
    depth: Literal[18, 20, 34, 50] = 18
    """Number of layers; 20 is the network of He et al. for CIFAR."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """First layer: 7×7 with stride 2 and max pooling (imagenet), or 3×3 for images of 32 or 64 pixels (cifar)."""
    width_multiplier: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Factor for the channels of all layers, rounded to whole channels."""
    nonlinearity: Annotated[str, Registered("pipeline.models.resnet:NONLINEARITIES")] = "relu"
    """Non-linearity. absolute is |x|, a phase collapse; threshold is two-sided with a learned threshold; sigmoid is
    sign(x)·σ(|x|); rational is x/(1+|x|)."""
    affine: bool = True
    """Learn a scale in batch normalization."""
    biases: bool = True
    """Learn a shift in batch normalization."""
    classifier_bias: bool = True
    """Give the linear classifier a bias."""
    sync_batch_stats: bool = False
    """Normalize with batch statistics over all workers; if false, each worker uses the statistics of its own images."""


def _family(model: Any) -> Any:
    """The family of a `model` section; scattering if it names none."""
    return model.get("family", "scattering") if isinstance(model, dict) else getattr(model, "family", "scattering")


ModelSettings = Annotated[
    Annotated[ScatteringSettings, Tag("scattering")] | Annotated[ResNetSettings, Tag("resnet")],
    Discriminator(_family),
]
"""The network: a section of one of the families; the field `family` selects it."""
