"""Where images come from: a source lists the images of each split, with their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.parallel import Executor
from data_prep.sources.image_index import ImageIndex

TEXTURES = "textures"


class ImageSource(Protocol):
    """Images of two splits, with their classes."""

    location: str
    """The folder, archive or address that is read (without secrets), or 'generated'."""
    options: dict[str, int | float | str]
    """The settings of the source itself."""

    @property
    def kind(self) -> str:
        """What sort of source it is."""

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """All images, as ranges of bytes in files.

        Args:
            scratch: for what has to be unpacked; it survives an interruption, and lasts until all images are read.
            workers: to unpack with.

        Raises:
            UserError: something is missing or damaged; names it.
        """


KINDS = ("folders", "imagenet", "parquet", "webdataset", "cifar10")


def open_source(location: str, class_names: Path | str | None = None, kind: str | None = None) -> ImageSource:
    """The source at a location.

    Args:
        location: a path or an address.
        class_names: what classes are called, see :mod:`data_prep.format.class_names`.
        kind: one of KINDS; by default the one that what lies there looks like.

    Raises:
        UserError: there is nothing, or `class_names` is given for a source that names its classes itself.
    """
    from data_prep.sources import archives, cifar, folders, imagenet, parquet, webdataset

    kind = kind or recognize(location)
    if kind == "cifar10":
        if class_names:
            raise UserError("--class-names is not for CIFAR-10, which names its classes itself: leave it out")
        return cifar.Cifar10(location)
    if kind == "imagenet":
        return imagenet.ImageNetArchives(location, class_names)
    if kind == "parquet":
        return parquet.ParquetTables(location, class_names)
    if kind == "webdataset":
        return webdataset.WebDataset(location, class_names)
    if is_archive(location):
        return archives.ArchivedFolders(location, class_names)
    return folders.ClassFolders(location, class_names)


def is_archive(location: str) -> bool:
    """Whether a location is named like a tar archive."""
    from data_prep.sources.archives import SUFFIXES

    return location.partition("?")[0].endswith(SUFFIXES)


def recognize(location: str) -> str:
    """The kind of what lies at a location; class folders if it looks like nothing else, or is not there."""
    from data_prep.sources import cifar, imagenet

    if not storage.is_folder(location):
        return "folders"
    names = storage.list_names(location)
    if imagenet.TRAIN in names or imagenet.DEVKIT in names:
        return "imagenet"
    if cifar.FOLDER in names or "batches.meta" in names:
        return "cifar10"
    if "data" in names and storage.is_folder(storage.join(location, "data")):
        names |= storage.list_names(storage.join(location, "data"))
    for suffix, kind in ((".parquet", "parquet"), (".tar", "webdataset")):
        if any(name.endswith(suffix) for name in names):
            return kind
    return "folders"
