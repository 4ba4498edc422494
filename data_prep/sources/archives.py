"""Class folders inside a tar archive, which is read in place; a compressed archive is decompressed first."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
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
from data_prep.sources.image_index import ImageIndex, IndexedImage, PassedOver, is_clutter

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
        passed_over = PassedOver()
        found = _below_root(with_links(archive, passed_over))
        return arrange(self.location, found, scratch, self._names, passed_over=passed_over)

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


def with_links(archive: str, passed_over: PassedOver) -> Iterator[IndexedImage]:
    """The files in a plain tar archive, and then those that links in it stand for, under the names of the links.

    Raises:
        UserError: see :func:`scan`.
    """
    links: dict[str, str] = {}
    yield from scan(archive, on_link=links.__setitem__)
    if not links:
        return
    targets: dict[str, str | None] = {name: _end_of(name, links) for name in links}
    wanted = set(targets.values())
    there = {image.name: image for image in scan(archive) if image.name in wanted}
    for name, target in targets.items():
        if target in there:
            yield there[target]._replace(name=name)
        else:
            passed_over.add("links that lead nowhere, pipes and devices", name)


def _end_of(name: str, links: dict[str, str]) -> str | None:
    """The file at the end of a chain of links; None if the chain has none."""
    for _ in range(len(links) + 1):
        if name not in links:
            return name
        name = links[name]
    return None


def scan(
    archive: str,
    start: int = 0,
    end: int | None = None,
    on_link: Callable[[str, str], None] = lambda name, target: None,
) -> Iterator[IndexedImage]:
    """The files in a plain tar archive, as ranges of its bytes, in its order.

    Args:
        start, end: range of the archive, if it is itself inside a file.
        on_link: called with the name of each hard or symbolic link, and that of the member that it leads to.

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
                    elif member.islnk() or member.issym():
                        folder = posixpath.dirname(member.name) if member.issym() else ""
                        target = posixpath.normpath(posixpath.join(folder, member.linkname))
                        on_link(member.name.removeprefix("./"), target)
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
    """Files with paths relative to the parent of a split's folder, where they are in one."""
    splits = {name for names in FOLDERS.values() for name in names}
    for image in found:
        parts = image.name.split("/")
        start = next((place for place, part in enumerate(parts[:-2]) if part in splits), None)
        if start is None or is_clutter("/".join(parts[:start])):
            yield image  # to be counted
        else:
            yield image._replace(name="/".join(parts[start:]))


def _decompressor(archive: str) -> Callable[[Any], Any]:
    """The decompressor of an archive, chosen by its name."""
    if archive.endswith(("xz", "txz")):
        return lzma.LZMAFile
    if archive.endswith(("bz2", "tbz2")):
        return bz2.BZ2File
    return lambda file: gzip.GzipFile(fileobj=file)
