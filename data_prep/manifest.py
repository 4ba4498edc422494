"""What a prepared data set is: manifest.json, beside the shards that it names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import UserError

FILE = "manifest.json"
FORMAT_VERSION: Literal[1] = 1

Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """A part of the manifest: immutable, unknown fields forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ImageClass(Record):
    """A class of images."""

    index: Count
    """Its label in the shards: 0, 1, 2, …"""
    id: str
    """The name of its folder, such as n01440764."""
    name: str
    """What people call it, such as tench; the id where nobody said."""


class Shard(Record):
    """One FFCV file."""

    file: str
    """Its name, relative to the data set's folder."""
    samples: Count
    bytes: Count
    sha256: str


class Split(Record):
    """The training or the validation images."""

    samples: Count
    samples_per_class: list[Count]
    """By class index."""
    shards: list[Shard]
    """In order: sample numbers of the split count through them."""


class Source(Record):
    """Where the images came from and how they were asked for: an equal request gives an equal data set."""

    kind: Literal["folders", "textures"]
    location: str
    """The folder that was read, or 'generated'."""
    digest: str
    """SHA-256 over what the source holds (for folders: class ids and names, and name and size of each file)."""
    options: dict[str, int]
    """The other settings of the request."""


class Manifest(Record):
    """A prepared data set."""

    format_version: Literal[1]
    name: str
    classes: list[ImageClass]
    splits: dict[Literal["train", "validation"], Split]
    encoding: Literal["jpeg"]
    max_side: Count
    """Largest height or width of a stored image, in pixels."""
    min_side: Count
    """Smallest height or width of a stored image, in pixels."""
    seed: Count
    """Decides the order of the images in the shards (and the content of generated ones)."""
    source: Source
    tools: dict[str, str]
    """Versions of what wrote the data set."""

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of images, their order and their classes: not of name, origin or tools."""
        content = self.model_dump(mode="json", exclude={"name", "source", "tools"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load(folder: Path) -> Manifest:
    """Reads the manifest of a prepared data set and checks that its shards are there, each with its size.

    Raises:
        UserError: the folder or its manifest is missing or damaged, or a shard is missing or of another size.
    """
    path = folder / FILE
    if not folder.is_dir():
        raise UserError(f"data set folder {folder} does not exist: write it with 'phasecollapse prepare'")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} is not a prepared data set, it has no {FILE}: use 'phasecollapse prepare'") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "file"
        raise UserError(f"{path} is damaged ({place}: {problem['msg']}): prepare the data set again") from None
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        _check_shard(folder / shard.file, shard)
    return manifest


def _check_shard(path: Path, shard: Shard) -> None:
    if not path.is_file():
        raise UserError(f"shard {path} is missing: prepare the data set again")
    size = path.stat().st_size
    if size != shard.bytes:
        raise UserError(f"shard {path} has {size} bytes instead of {shard.bytes}: prepare the data set again")
