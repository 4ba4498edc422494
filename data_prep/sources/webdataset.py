"""WebDataset's tar shards: members KEY.jpg and KEY.cls (or KEY.json with a label) belong together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.parallel import Advance, Executor
from data_prep.format.manifest import SPLITS, SplitName
from data_prep.sources.archives import scan
from data_prep.sources.image_index import ImageIndex, IndexedImage
from data_prep.sources.labelled import LabelledImage, files_of_splits, to_index
from data_prep.sources.registry import FolderNames

IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp")
LABELS = ("cls", "json")


def recognizes(folder: FolderNames) -> bool:
    """Whether a folder, or its subfolder `data`, holds tar files."""
    return any(name.endswith(".tar") for name in folder.with_data)


def open_source(location: str, class_names: Path | str | None = None) -> WebDataset:
    """The shards below a folder."""
    return WebDataset(location, class_names)


class WebDataset:
    """A folder or an address with shards such as NAME-train-0000.tar and NAME-validation-00.tar, read in place.

    Args:
        folder: holds the shards.
        names: classes in the order of their labels, see :func:`data_prep.format.class_names.from_labels`.
    """

    kind = "webdataset"

    def __init__(self, folder: str, names: Path | str | None = None) -> None:
        self._folder = folder if storage.is_remote(folder) else str(Path(folder).resolve())
        self._names = names
        self.location = storage.redact(self._folder)
        self.options: dict[str, int | float | str] = {}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """The images of both splits.

        Raises:
            UserError: a shard is damaged, or an image has no label.
        """
        shards = files_of_splits(self._folder, ".tar")
        images: dict[SplitName, Iterable[LabelledImage]] = {
            split: (each for found in executor.map(_read_shard, shards[split]) for each in found) for split in SPLITS
        }
        return to_index(self.location, images, scratch, self._names)


def _read_shard(archive: str, advance: Advance) -> list[LabelledImage]:
    """The images of a shard."""
    return list(_pair(archive, scan(archive)))


def _pair(archive: str, members: Iterator[IndexedImage]) -> Iterator[LabelledImage]:
    """Images with their labels; the members of a key are consecutive."""
    key: str | None = None
    parts: dict[str, IndexedImage] = {}
    for member in members:
        folder, _, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if (found := f"{folder}/{stem}") != key:
            yield from _label(archive, key, parts)
            key, parts = found, {}
        parts[suffix.lower()] = member
    yield from _label(archive, key, parts)


def _label(archive: str, key: str | None, parts: dict[str, IndexedImage]) -> Iterator[LabelledImage]:
    image = next((parts[suffix] for suffix in IMAGES if suffix in parts), None)
    if image is None:
        return
    place = f"{storage.redact(archive)}: {image.name}"
    suffix = next((suffix for suffix in LABELS if suffix in parts), None)
    if suffix is None:
        raise UserError(f"{place} has no label: it needs a member {(key or '').strip('/')}.cls, or .json with a label")
    text = storage.read_range(archive, parts[suffix].offset, parts[suffix].size)
    try:
        label = int(text) if suffix == "cls" else int(json.loads(text)["label"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place} has a label that is not a number: {text[:40]!r}") from None
    shard = archive.partition("?")[0].rsplit("/", 1)[-1]
    yield LabelledImage(label, image._replace(name=f"{shard}/{image.name}"))
