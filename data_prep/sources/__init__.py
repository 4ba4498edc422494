"""Where images come from: a source lists the images of each split, with their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from data_prep import storage
from data_prep.listing import Listing
from data_prep.parallel import Workers

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

    def list(self, scratch: Path, workers: Workers) -> Listing:
        """All images, as ranges of bytes in files.

        Args:
            scratch: for what has to be unpacked; it survives an interruption, and lasts until all images are read.
            workers: to unpack with.

        Raises:
            UserError: something is missing or damaged; names it.
        """


def open_source(location: str, class_names: Path | str | None = None) -> ImageSource:
    """The source at a location: class folders, on a disk, in object storage or in a tar archive.

    Raises:
        UserError: there is nothing, or nothing that is known.
    """
    from data_prep.sources.archives import SUFFIXES, ArchivedFolders
    from data_prep.sources.folders import ClassFolders

    if location.partition("?")[0].endswith(SUFFIXES) and not storage.is_folder(location):
        return ArchivedFolders(location, class_names)
    return ClassFolders(location, class_names)
