"""Class folders inside a tar archive, which is read in place; a compressed archive is decompressed first."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.parallel import Executor
from data_prep.sources.folders import FOLDERS, arrange
from data_prep.sources.image_index import ImageIndex, IndexedImage

BLOCK = 2**20
"""Bytes in a block that is read."""


class ArchivedFolders:
    """A tar archive with folders `{train,val}/<class id>/<image files>`, below any number of others.

    Args:
        archive: its path or address.
        names: see :class:`data_prep.sources.folders.ClassFolders`.
    """

    kind = "folders"

    def __init__(self, archive: str, names: Path | str | None = None) -> None:
        self._archive = archive if storage.is_remote(archive) else str(Path(archive).resolve())
        self._names = names
        self.location = storage.redact(self._archive)
        self.options: dict[str, int | float | str] = {}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """The images of both splits.

        Raises:
            UserError: the archive is missing or damaged, or has no such folders.
        """
        plain = self._archive.partition("?")[0].endswith(".tar")
        archive = self._archive if plain else str(self._decompress(scratch))
        return arrange(self.location, _below_root(scan(archive)), scratch, self._names)

    def _decompress(self, scratch: Path) -> Path:
        plain = scratch / "source.tar"
        if plain.exists():
            return plain
        partial = scratch / "source.tar.partial"
        try:
            with storage.open_file(self._archive) as compressed, partial.open("wb") as file:
                opened = _decompressor(self._archive.partition("?")[0])(compressed)
                shutil.copyfileobj(opened, file, BLOCK)
        except (EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise UserError(f"{self.location} is damaged ({error}): download it again") from None
        partial.replace(plain)
        return plain


def scan(archive: str, start: int = 0, end: int | None = None) -> Iterator[IndexedImage]:
    """The files in a plain tar archive, as ranges of its bytes, in its order.

    Args:
        start, end: range of the archive, if it is itself inside a file.

    Raises:
        UserError: the archive cannot be read, is truncated or damaged.
    """
    name, after = "its beginning", start
    try:
        with _buffered(archive) as file:
            end = end or file.seek(0, os.SEEK_END)
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as members:
                while (member := members.next()) is not None:
                    after = member.offset_data + member.size
                    if after > end:
                        break
                    if member.isfile():
                        yield IndexedImage(member.name.removeprefix("./"), archive, member.offset_data, member.size)
                    name, members.members = member.name, []  # type: ignore[attr-defined]  # it would keep all it has seen
            file.seek(-(-after // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            closed = after <= end and len(file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE
    except tarfile.TarError as error:
        raise UserError(f"{storage.redact(archive)} is damaged ({error}): download it again") from None
    except OSError as error:
        raise UserError(f"{storage.redact(archive)} cannot be read: {storage.first_line(error)}") from None
    if not closed:  # a block of zeros ends an archive
        raise UserError(f"{storage.redact(archive)} is truncated at {name}: download it again")


def _buffered(archive: str) -> BinaryIO:
    """A file to read headers from; little is read ahead on a disk, and a block from object storage."""
    if storage.is_remote(archive):
        return cast(BinaryIO, io.BufferedReader(storage.open_file(archive), BLOCK))
    try:
        return Path(archive).open("rb")
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from None


def _below_root(found: Iterator[IndexedImage]) -> Iterator[IndexedImage]:
    """Images with paths relative to the parent of a split's folder, without files elsewhere and hidden ones."""
    splits = {name for names in FOLDERS.values() for name in names}
    for image in found:
        parts = image.name.split("/")
        if parts[-1].startswith("."):
            continue
        start = next((place for place, part in enumerate(parts[:-2]) if part in splits), None)
        if start is not None:
            yield image._replace(name="/".join(parts[start:]))


def _decompressor(archive: str) -> Callable[[Any], Any]:
    """The decompressor of an archive, chosen by its name."""
    if archive.endswith(("xz", "txz")):
        return lzma.LZMAFile
    if archive.endswith(("bz2", "tbz2")):
        return bz2.BZ2File
    return lambda file: gzip.GzipFile(fileobj=file)
