"""The sources of images: each is a module and a line in this file, or a line in a package outside this one.

A module of a source is imported when a source is opened. It defines two functions, of which a generated source needs
the second alone::

    def recognizes(folder: FolderNames) -> bool: ...
    def open_source(location: str, class_names: Path | str | None = None) -> ImageSource: ...
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults

if TYPE_CHECKING:
    from data_prep.common.parallel import Executor
    from data_prep.sources.image_index import ImageIndex


@runtime_checkable
class ImageSource(Protocol):
    """Images of two splits, with their classes."""

    location: str
    """The folder, archive or address that is read, without the credentials in it; or 'generated'."""
    options: dict[str, int | float | str]
    """The settings of the source itself."""

    @property
    def kind(self) -> str:
        """The name of the source in SOURCES."""

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """All images, as ranges of bytes in files.

        Args:
            scratch: folder for what has to be unpacked; kept after an interruption, deleted when all images are read.
            executor: runs the unpacking.

        Raises:
            UserError: something is missing or damaged; names it.
        """


@dataclass(frozen=True)
class FolderNames:
    """A location and the names of what is directly in it."""

    location: str
    names: Set[str]
    """Names of files and folders; empty if the location is not a folder."""

    @functools.cached_property
    def with_data(self) -> Set[str]:
        """The names, and those in the subfolder `data`, where Hugging Face keeps files."""
        from data_prep.common import storage

        if "data" not in self.names or not storage.is_folder(data := storage.join(self.location, "data")):
            return self.names
        return self.names | storage.list_names(data)


@dataclass(frozen=True)
class SourceType:
    """A kind of source.

    Args:
        module: its full name, such as data_prep.sources.parquet.
        options: keyword arguments of the module's `open_source`; options of the command `prepare` have these names.
        generated: the source has no location: `prepare` opens it where its name is given instead of one.
    """

    module: str
    options: tuple[str, ...] = ("class_names",)
    generated: bool = False

    def recognizes(self, folder: FolderNames) -> bool:
        """Whether a location holds a source of this kind."""
        with explain_faults(f"source {self.module}: recognizes"):
            return bool(importlib.import_module(self.module).recognizes(folder))

    def open(self, location: str, **options: Any) -> ImageSource:
        """The source at a location, with a value for any of `options`.

        Raises:
            UserError: there is nothing that it can read; or a source from elsewhere fails.
        """
        with explain_faults(f"source {self.module}: open_source"):
            source = importlib.import_module(self.module).open_source(location, **options)
        if not isinstance(source, ImageSource):
            raise UserError(
                f"source {self.module}: open_source returns {type(source).__name__}, without all of location, options, "
                "kind and list: return an ImageSource"
            )
        return source


SOURCES: Registry[SourceType] = Registry("--kind")
"""By kind. A location is of the first kind that recognizes it, in this order; class folders are the default."""
DEFAULT = "folders"

SOURCES.register("imagenet", SourceType("data_prep.sources.imagenet"))
SOURCES.register("cifar10", SourceType("data_prep.sources.cifar", options=()))
SOURCES.register("parquet", SourceType("data_prep.sources.parquet"))
SOURCES.register("webdataset", SourceType("data_prep.sources.webdataset"))
SOURCES.register("folders", SourceType("data_prep.sources.folders"))
SOURCES.register(
    "textures",
    SourceType("data_prep.sources.textures", ("seed", "train_per_class", "validation_per_class"), generated=True),
)


def open_source(
    location: str, class_names: Path | str | None = None, kind: str | None = None, **options: Any
) -> ImageSource:
    """The source at a location.

    Args:
        location: a path or an address; the name of a generated source if that is its `kind`.
        class_names: what classes are called, see :mod:`data_prep.format.class_names`.
        kind: a name in SOURCES; by default the one that recognizes the location.
        options: others that the source takes; None counts as not given.

    Raises:
        UserError: there is nothing, the kind is unknown, or the source does not take one of the options.
    """
    kind = kind or recognize(location)
    source = SOURCES.find(kind)
    given = {name: value for name, value in {"class_names": class_names, **options}.items() if value is not None}
    for name in given:
        if name not in source.options:
            others = ", ".join(other for other, each in SOURCES.items() if name in each.options)
            raise UserError(f"--{name.replace('_', '-')} is for {others}, not for {kind}: leave it out")
    return source.open(location, **given)


def list_images(source: ImageSource, scratch: Path, executor: Executor) -> ImageIndex:
    """The images of a source, checked: a source may come from elsewhere.

    Raises:
        UserError: the source fails, or its index contradicts itself; or as :meth:`ImageSource.list` says.
    """
    from data_prep.sources.image_index import find_fault

    with explain_faults(f"source {source.kind}: list"):
        index = source.list(scratch, executor)
        if fault := find_fault(index):
            raise UserError(f"source {source.kind}: list returns an index in which {fault}: correct it")
    return index


def recognize(location: str) -> str:
    """The kind of what lies at a location; class folders if nothing recognizes it, or it is not there."""
    from data_prep.common import storage

    folder = FolderNames(location, storage.list_names(location) if storage.is_folder(location) else frozenset())
    kinds = (kind for kind, source in SOURCES.items() if not source.generated and kind != DEFAULT)
    return next((kind for kind in kinds if SOURCES[kind].recognizes(folder)), DEFAULT)
