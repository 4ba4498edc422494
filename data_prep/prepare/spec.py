"""Settings of `prepare`: equal settings and sources give equal data sets, bit for bit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from data_prep.codec.convert import QUALITY, RESAMPLING
from data_prep.format.manifest import Count, Encoding, Record
from data_prep.sources.registry import ImageSource

MAX_SIDE: dict[Encoding, int] = {"jpeg": 512, "raw": 256, "mixed": 512}
"""Default of the largest stored side, in pixels: most ImageNet images (500 pixels) keep their JPEG bytes."""
SHARD_SAMPLES = 4096
"""Default number of images in a shard: JPEG images of 500 pixels make shards of about 450 MB."""


class PrepareSpec(Record):
    """A source, and how its images are stored."""

    kind: str
    """Kind of the source."""
    location: str
    """Location of the source, without user name and password."""
    source_options: dict[str, int | float | str] = Field(default_factory=dict)
    """Options of the source, including classes and limits."""
    encoding: Encoding = "jpeg"
    raw_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Fraction of the images that are stored as pixels, if `encoding` is mixed."""
    max_side: Annotated[int, Field(ge=8, le=65535)]
    """Longest side stored, in pixels."""
    quality: Annotated[int, Field(ge=1, le=100)] = QUALITY
    """JPEG quality of images that are re-encoded."""
    shard_samples: Annotated[int, Field(ge=1)] = SHARD_SAMPLES
    """Number of images in a shard."""
    resampling: str = RESAMPLING
    """How images are shrunk."""
    seed: Count = 0
    """Seed of the order of the images."""
    allow_damaged: Count = 0
    """Number of images that may be left out because they cannot be read or decoded; may change on resume."""
    allow_damaged_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Likewise, as a fraction of all images; the larger of both numbers counts."""

    @classmethod
    def of(cls, source: ImageSource, **options: Any) -> PrepareSpec:
        """The settings for the images of a source."""
        max_side = options.pop("max_side", None) or MAX_SIDE[options.get("encoding", "jpeg")]
        return cls(
            kind=source.kind, location=source.location, source_options=source.options, max_side=max_side, **options
        )

    def damaged_allowed(self, images: int) -> int:
        """Number of images that may be left out, of so many in all."""
        return max(self.allow_damaged, int(self.allow_damaged_share * images))

    def options(self) -> dict[str, int | float | str]:
        """The settings that the manifest stores, beside kind, location and seed."""
        own = self.model_dump(include={"encoding", "max_side", "quality", "resampling", "shard_samples"})
        share = {"raw_share": self.raw_share} if self.encoding == "mixed" else {}
        return {**own, **share, **self.source_options}

    def difference(self, other: PrepareSpec) -> str:
        """How other settings differ, as a phrase; empty if they are equal."""
        ours = {"kind": self.kind, "location": self.location, "seed": self.seed, **self.options()}
        theirs = {"kind": other.kind, "location": other.location, "seed": other.seed, **other.options()}
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        return ", ".join(f"{name} {theirs.get(name, 'unset')} instead of {ours.get(name, 'unset')}" for name in names)
