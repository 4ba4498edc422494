"""Manifest of a prepared data set: the file manifest.json beside the shards that it names."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from data_prep.common.errors import UserError
from data_prep.common.files import open_regular, write_atomically

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION: Literal[2] = 2

SplitName = Literal["train", "validation"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
Encoding = Literal["jpeg", "raw", "mixed"]

LARGEST_MANIFEST = 2**28
"""Largest size of a manifest, in bytes."""

# Numbers up to 2^53, which every reader of JSON keeps; sums of a few thousand of them fit into 64 bits.
Count = Annotated[int, Field(ge=0, le=2**53)]
PositiveCount = Annotated[int, Field(ge=1, le=2**53)]


def _stays_inside(name: str) -> str:
    """Rejects what is not a plain name of an FFCV file: files are removed, moved and copied by these names."""
    if PurePosixPath(name).name != name or not name.isprintable() or not name.endswith(".beton"):
        raise ValueError(f"{name!r} is not the name of an FFCV file inside the data set's folder")
    return name


FileName = Annotated[str, AfterValidator(_stays_inside)]


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
    """Human-readable name, such as tench; the id where the source gives no name."""


class File(Record):
    """One FFCV file: a shard, or a whole split after `merge`."""

    file: FileName
    """Its name, relative to the data set's folder."""
    samples: PositiveCount
    bytes: PositiveCount
    sha256: str
    """Hash of the whole file, in hexadecimal."""


class Part(Record):
    """Consecutive samples that were written as one shard; merging does not change parts."""

    samples: PositiveCount
    sha256: str
    """Hash of the samples' content, see :func:`data_prep.format.beton.content_digest`; independent of files."""


class LeftOut(Record):
    """An image of the source that cannot be decoded and was left out, as --allow-damaged permits."""

    image: str
    """Its name in the source."""
    reason: str


class Split(Record):
    """The training or the validation images."""

    samples: Count
    samples_per_class: list[Count]
    """By class index."""
    bytes: Count
    """Bytes of the stored images alone."""
    untouched: Count
    """Number of images that kept the bytes of their JPEG file."""
    raw: Count
    """Number of images stored as pixels; all others are JPEG."""
    files: list[File]
    """In order: samples of the split are numbered through all files."""
    parts: list[Part]
    """In order; they have as many samples as the files."""
    left_out: list[LeftOut]


class Source(Record):
    """Source of the images and settings of `prepare`: equal ones give equal data sets."""

    kind: str
    """Kind of source, such as folders, imagenet or textures."""
    location: str
    """The folder, archive or address that was read, without user name and password; or 'generated'."""
    digest: str
    """SHA-256 of the classes, and of name, class and size of each image in the source."""
    options: dict[str, int | float | str]
    """The other settings of `prepare`."""


class Manifest(Record):
    """A prepared data set."""

    format_version: Literal[2]
    name: str
    classes: list[ImageClass]
    splits: dict[SplitName, Split]
    encoding: Encoding
    """Requested encoding: jpeg, raw pixels, or mixed."""
    max_side: Count
    """Largest height or width of a stored image, in pixels."""
    min_side: Count
    """Smallest height or width of a stored image, in pixels."""
    seed: Count
    """Seed of the order of the images in the shards, and of generated images."""
    source: Source
    tools: dict[str, str]
    """Versions of the packages that wrote the data set."""

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of classes, images and their order.

        It does not depend on name, source, tools and files: merged and staged copies have the same digest.
        """
        content = {
            "classes": [each.model_dump() for each in self.classes],
            "splits": {name: [part.model_dump() for part in split.parts] for name, split in self.splits.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def parse_manifest(content: bytes, place: str) -> Manifest:
    """The manifest in the text of its file; `place` names that file in messages.

    Raises:
        UserError: it is damaged, too large, or of another version.
    """
    if len(content) > LARGEST_MANIFEST:
        raise UserError(
            f"{place} has more than {LARGEST_MANIFEST} bytes, and is no manifest: prepare the data set again"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or "file"
        if field == "format_version" and isinstance(version := problem["input"], int) and version > FORMAT_VERSION:
            raise UserError(
                f"{place} was written by a newer phasecollapse (format {version}; this one reads {FORMAT_VERSION}): "
                "upgrade phasecollapse"
            ) from None
        raise UserError(f"{place} is damaged ({field}: {problem['msg']}): prepare the data set again") from None


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a prepared data set, and no other file.

    Raises:
        UserError: the folder or its manifest is missing or damaged.
    """
    path = folder / MANIFEST_FILE
    if not folder.is_dir():
        raise UserError(f"data set folder {folder} does not exist: write it with 'phasecollapse prepare'")
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST_MANIFEST + 1)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a prepared data set, it has no {MANIFEST_FILE}: use 'phasecollapse prepare'"
        ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror}; fix the cause, or prepare the data set again"
        ) from None
    return parse_manifest(content, str(path))


def load_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a prepared data set and checks that its shards are there, each with its size.

    Raises:
        UserError: the folder or its manifest is missing, damaged or contradicts itself, or a shard is missing or of
            another size.
    """
    manifest = read_manifest(folder)
    require_consistent(manifest, str(folder / MANIFEST_FILE))
    for file in (file for split in manifest.splits.values() for file in split.files):
        _check_file(folder / file.file, file)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a data set, or replaces it atomically."""
    write_atomically(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")


def require_consistent(manifest: Manifest, place: str) -> None:
    """Checks that a manifest does not contradict itself; `place` names its file in messages.

    Raises:
        UserError: it does, see :func:`contradictions`.
    """
    for found in contradictions(manifest):
        raise UserError(f"{place} is damaged ({found}): prepare the data set again")


def contradictions(manifest: Manifest) -> Iterator[str]:
    """What in a manifest does not agree with the rest of it: numbers and ids of classes, names of files, counts."""
    if [each.index for each in manifest.classes] != list(range(len(manifest.classes))):
        yield "its classes are not numbered 0, 1, 2, …"
    if len({each.id for each in manifest.classes}) < len(manifest.classes):
        yield "two of its classes have the same id"
    names = Counter(file.file for split in manifest.splits.values() for file in split.files)
    if twice := next((name for name, times in names.items() if times > 1), None):
        yield f"it names {twice} twice"
    for name, split in manifest.splits.items():
        counts = {
            "files": sum(file.samples for file in split.files),
            "parts": sum(part.samples for part in split.parts),
            "classes": sum(split.samples_per_class),
        }
        for what, count in counts.items():
            if count != split.samples:
                yield f"{name} has {split.samples} samples, but its {what} have {count}"
        if len(split.samples_per_class) != len(manifest.classes):
            yield f"{name} counts the samples of {len(split.samples_per_class)} classes"


def _check_file(path: Path, entry: File) -> None:
    if not path.is_file():
        raise UserError(f"shard {path} is missing: prepare the data set again")
    size = path.stat().st_size
    if size != entry.bytes:
        raise UserError(f"shard {path} has {size} bytes instead of {entry.bytes}: prepare the data set again")
