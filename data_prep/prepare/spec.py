"""What `prepare` is asked for: equal requests give equal data sets, bit for bit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from data_prep.codec.convert import QUALITY
from data_prep.format.manifest import Count, Encoding, Record
from data_prep.sources.registry import ImageSource

MAX_SIDE: dict[Encoding, int] = {"jpeg": 512, "raw": 256, "mixed": 512}
"""Largest stored side by default, in pixels: most ImageNet photographs (500 pixels) keep their bytes as JPEG."""
SHARD_SAMPLES = 4096
"""Images in a shard by default: photographs of 500 pixels make shards of about 450 MB."""


class PrepareSpec(Record):
    """A source, and how its images are to be stored."""

    kind: str
    """Of the source."""
    location: str
    """Of the source."""
    source_options: dict[str, int | float | str] = Field(default_factory=dict)
    """What the source itself was asked for, classes and limits included."""
    encoding: Encoding = "jpeg"
    raw_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the images that are stored as pixels, if `encoding` is mixed."""
    max_side: Annotated[int, Field(ge=8, le=65535)]
    """Longest side stored, in pixels."""
    quality: Annotated[int, Field(ge=1, le=100)] = QUALITY
    """Of JPEGs that are encoded anew."""
    shard_samples: Annotated[int, Field(ge=1)] = SHARD_SAMPLES
    """Images in a shard."""
    seed: Count = 0
    """Of the order of the images."""
    allow_damaged: Count = 0
    """Images that may be left out because they cannot be decoded; may change when an interrupted request goes on."""

    @classmethod
    def of(cls, source: ImageSource, **options: Any) -> PrepareSpec:
        """A request for the images of a source."""
        max_side = options.pop("max_side", None) or MAX_SIDE[options.get("encoding", "jpeg")]
        return cls(
            kind=source.kind, location=source.location, source_options=source.options, max_side=max_side, **options
        )

    def options(self) -> dict[str, int | float | str]:
        """What the manifest keeps of it, beside kind, location and seed."""
        own = self.model_dump(include={"encoding", "max_side", "quality", "shard_samples"})
        share = {"raw_share": self.raw_share} if self.encoding == "mixed" else {}
        return {**own, **share, **self.source_options}

    def difference(self, other: PrepareSpec) -> str:
        """Where another request differs, in words; empty if it does not."""
        ours = {"kind": self.kind, "location": self.location, "seed": self.seed, **self.options()}
        theirs = {"kind": other.kind, "location": other.location, "seed": other.seed, **other.options()}
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        return ", ".join(f"{name} {theirs.get(name, 'unset')} instead of {ours.get(name, 'unset')}" for name in names)
