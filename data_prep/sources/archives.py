"""Class folders inside a tar or zip archive. A plain tar archive is read in place, others are decompressed first."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from data_prep.common import storage
from data_prep.common.errors import UserError, printable
from data_prep.common.files import open_regular, replacing, require_space
from data_prep.common.parallel import Executor
from data_prep.format import class_names
from data_prep.sources.folders import FOLDERS, NAME_FILES, arrange
from data_prep.sources.image_index import NO_FILES, ImageIndex, IndexedImage, PassedOver, is_clutter

BLOCK = 2**20
"""Bytes in a block that is read."""
MOST_LINKS = 40
"""Links that lead to links, one after the other, as many as Linux follows."""
LONGEST_LINK = 4096
"""Bytes of the path in a link."""


class ArchivedFolders:
    """A tar or zip archive with folders `{train,val}/<class id>/<image files>`, below any number of others.

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
        plain = self._archive.partition("?")[0].lower().endswith(".tar")
        archive = self._archive if plain else str(self._decompress(scratch))
        passed_over = PassedOver()
        names = _NameFiles()
        found = names.watch(_below_root(with_links(archive, passed_over.add)))
        return arrange(self.location, found, scratch, self._names, names.read, passed_over)

    def _decompress(self, scratch: Path) -> Path:
        """The plain archive with the content of a compressed one, in the folder `scratch`."""
        plain = scratch / "source.tar"
        if not plain.exists():
            name = self._archive.partition("?")[0].lower()
            try:
                with storage.open_file(self._archive) as compressed, replacing(plain) as file:
                    if name.endswith(".zip"):
                        _from_zip(self.location, compressed, file, scratch)
                    else:
                        _from_tar(_decompressor(name)(compressed), file)
            except (*_DAMAGE, OSError) as error:
                if (
                    isinstance(error, OSError) and error.errno is not None
                ):  # without a number, decompressors name damage
                    raise
                reason = storage.first_line(error)
                raise UserError(f"{self.location} is damaged or truncated ({reason}): download it again") from None
        return plain


class _NameFiles:
    """Files with the names of the classes, as they are found beside the folders of the splits."""

    def __init__(self) -> None:
        self._found: dict[str, IndexedImage] = {}

    def watch(self, images: Iterator[IndexedImage]) -> Iterator[IndexedImage]:
        """The images, and all else; what is there in a name file is remembered."""
        for image in images:
            name = image.name.rpartition("/")[2]
            if name in NAME_FILES:
                self._found.setdefault(name, image)
            yield image

    def read(self) -> dict[str, str]:
        """Names by id, of the first of NAME_FILES that was found; empty without one."""
        for name in NAME_FILES:
            if image := self._found.get(name):
                return class_names.parse_names(storage.read_range(image.file, image.offset, image.size), image.name)
        return {}


_DAMAGE = (EOFError, ValueError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, pa.ArrowException)


def _from_tar(opened: Any, file: BinaryIO) -> None:
    """Decompresses a tar archive."""
    while block := opened.read(BLOCK):
        file.write(block)


def _from_zip(location: str, compressed: Any, file: BinaryIO, folder: Path) -> None:
    """Writes the members of a zip archive as a tar archive, which then is read like any other.

    A member takes as many bytes as the archive declares, for which there must be space, whatever it unpacks to.

    Raises:
        UserError: a member is encrypted or in a format that Python cannot read, or the disk is too small.
    """
    with (
        zipfile.ZipFile(compressed) as archive,
        tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as tar,
    ):
        members = [member for member in archive.infolist() if not member.is_dir()]
        needed = sum(member.file_size + 3 * tarfile.BLOCKSIZE for member in members)
        require_space(folder, needed, "or unpack the archive to another disk yourself")
        for member in members:
            entry = tarfile.TarInfo(member.filename.replace("\\", "/"))
            if member.flag_bits & 1:
                raise UserError(f"{location}: {printable(member.filename)} is encrypted: unpack the archive yourself")
            try:
                with archive.open(member) as content:
                    if stat.S_ISLNK(member.external_attr >> 16):
                        entry.type, entry.linkname = (
                            tarfile.SYMTYPE,
                            content.read(LONGEST_LINK).decode("utf-8", "replace"),
                        )
                        tar.addfile(entry)
                    else:
                        entry.size = member.file_size
                        tar.addfile(entry, content)
            except NotImplementedError as error:
                raise UserError(
                    f"{location}: {printable(member.filename)} cannot be unpacked ({error}): unpack the archive "
                    "yourself"
                ) from None


def with_links(archive: str, on_other: Callable[[str, str], None]) -> Iterator[IndexedImage]:
    """The files in a plain tar archive, and then those that links in it stand for, under the names of the links.

    Args:
        on_other: called with a reason and a name for each member that is no file, and leads to none.

    Raises:
        UserError: see :func:`scan`.
    """
    links: dict[str, str] = {}
    yield from scan(archive, on_link=links.__setitem__, on_special=lambda name: on_other(NO_FILES, name))
    if not links:
        return
    targets = {name: _end_of(name, links) for name in links}
    by_target: dict[str, list[str]] = {}
    for name, target in targets.items():
        by_target.setdefault(target or "", []).append(name)
    found: set[str] = set()
    for image in scan(archive):
        folder, below = image.name, ""
        while True:  # the file itself, then each folder that it is in
            for name in by_target.get(folder, ()) if folder else ():
                found.add(name)
                yield image._replace(name=name + below)
            folder, _, last = folder.rpartition("/")
            below = f"/{last}{below}"
            if not folder:
                break
    for name in links:
        if name not in found:
            on_other(NO_FILES, name)


def _end_of(name: str, links: dict[str, str]) -> str | None:
    """The file at the end of a chain of links; None if the chain has none."""
    for _ in range(MOST_LINKS):
        if name not in links:
            return name
        name = links[name]
    return None


def scan(
    archive: str,
    start: int = 0,
    end: int | None = None,
    on_link: Callable[[str, str], None] = lambda name, target: None,
    on_special: Callable[[str], None] = lambda name: None,
) -> Iterator[IndexedImage]:
    """The files in a plain tar archive, as ranges of its bytes, in its order.

    Args:
        start, end: range of the archive, if it is itself inside a file.
        on_link: called with the name of each hard or symbolic link, and that of the member that it leads to.
        on_special: called with the name of each pipe and device.

    Raises:
        UserError: the archive cannot be read, is truncated or damaged, or has a sparse file.
    """
    name, after = "its beginning", start
    try:
        with _buffered(archive) as file:
            end = end or file.seek(0, os.SEEK_END)
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as members:
                while (member := members.next()) is not None:
                    after = member.offset_data + member.size
                    if member.size < 0:  # the next header would be before this one
                        raise tarfile.ReadError(f"{printable(member.name)} has a size of {member.size} bytes")
                    if member.issparse():
                        raise UserError(
                            f"{storage.redact(archive)}: {printable(member.name)} is stored as a sparse file, which is "
                            "not read: pack the archive again without tar's option --sparse"
                        )
                    if after > end:
                        break
                    if member.isfile():
                        yield IndexedImage(member.name.removeprefix("./"), archive, member.offset_data, member.size)
                    elif member.islnk() or member.issym():
                        folder = posixpath.dirname(member.name) if member.issym() else ""
                        target = posixpath.normpath(posixpath.join(folder, member.linkname))
                        on_link(member.name.removeprefix("./"), target)
                    elif not member.isdir():
                        on_special(member.name.removeprefix("./"))
                    name, members.members = member.name, []  # type: ignore[attr-defined]  # it would keep all it has seen
            file.seek(-(-after // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            closed = after <= end and len(file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE
    except (tarfile.TarError, ValueError, OverflowError) as error:  # tarfile converts a header's numbers unchecked
        reason = storage.first_line(error)
        raise UserError(f"{storage.redact(archive)} is damaged ({reason}): download it again") from None
    except OSError as error:
        raise UserError(f"{storage.redact(archive)} cannot be read: {storage.first_line(error)}") from None
    if not closed:  # a block of zeros ends an archive
        raise UserError(f"{storage.redact(archive)} is truncated at {name}: download it again")


def _buffered(archive: str) -> BinaryIO:
    """A file to read headers from; little is read ahead on a disk, and a block from object storage."""
    if storage.is_remote(archive):
        return cast(BinaryIO, io.BufferedReader(storage.open_file(archive), BLOCK))
    try:
        return io.BufferedReader(open_regular(Path(archive)))
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
    if archive.endswith(("zst", "tzst")):
        return lambda file: pa.CompressedInputStream(file, "zstd")
    return lambda file: gzip.GzipFile(fileobj=file)
