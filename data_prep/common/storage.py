"""Reads files on disks and in object storage through one interface.

A location is a path, or an address such as s3://bucket/folder, gs://bucket/folder, or one of any scheme that fsspec
supports. S3 endpoints and credentials come from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, …).
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow as pa
from pyarrow import fs

from data_prep.common import errors
from data_prep.common.errors import UserError, redact
from data_prep.common.files import open_regular

RETRY_DELAYS = (0.5, 2.0)
"""Seconds to wait after the first and after the second failure of a request; pyarrow repeats each request, too."""
PERMANENT_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""Failures after which a request is not repeated."""
OPEN_FILES = 64
"""Number of files in object storage that are kept open: opening one costs a request."""

Result = TypeVar("Result")


class _Unknown(Exception):
    """Neither pyarrow nor fsspec can open an address; the message says why."""


class FileEntry(NamedTuple):
    """A file below a folder."""

    name: str
    """Its path relative to the folder, with / between parts."""
    size: int


def is_remote(location: str) -> bool:
    """Whether a location is an address, not a path."""
    return "://" in location


def join(location: str, *names: str) -> str:
    """The location of a file or folder below another location."""
    folder, mark, options = location.partition("?")
    return "/".join([folder.rstrip("/"), *names]) + mark + options


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a location, and the path in it.

    Raises:
        UserError: the scheme of the address is unknown, the address is malformed, or a path is not in UTF-8.
    """
    try:
        location.encode()
    except UnicodeEncodeError:
        raise UserError(f"{location} is not in UTF-8: rename it, or lead to it by a link") from None
    if not is_remote(location):
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    scheme, _, rest = location.partition("://")
    place, mark, options = rest.partition("?")
    authority, _, path = place.partition("/")
    try:
        filesystem, root = _connect(f"{scheme}://{authority}/{mark}{options}")
    except _Unknown as error:
        raise UserError(f"{redact(location)} is not an address that can be read: {error}") from None
    return filesystem, f"{root.rstrip('/')}/{path}" if path else root


@functools.lru_cache(maxsize=OPEN_FILES)
def _connect(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address without a path (a bucket, a host); created once."""
    try:
        filesystem, root = fs.FileSystem.from_uri(address)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        return _by_fsspec(address, error)
    return filesystem, root


def read_range(location: str, offset: int, size: int) -> bytes:
    """Bytes of a file.

    Raises:
        UserError: the file cannot be read, or ends before them.
    """
    content = _read_local(location, offset, size) if not is_remote(location) else _read_remote(location, offset, size)
    if len(content) != size:
        raise UserError(
            f"{redact(location)} ends at byte {offset + len(content)} of {offset + size}: it was truncated, "
            "or changed since it was listed"
        )
    return content


def read_all(location: str) -> bytes:
    """All of a small file.

    Raises:
        UserError: it cannot be read.
    """
    return read_range(location, 0, file_size(location))


def file_size(location: str) -> int:
    """Size of a file, in bytes.

    Raises:
        UserError: there is no such file.
    """
    filesystem, path = resolve(location)
    info = with_retries(location, lambda: filesystem.get_file_info(path))
    if info.type != fs.FileType.File:
        raise UserError(f"{redact(location)} does not exist, or is not a file")
    return int(info.size)


def is_folder(location: str) -> bool:
    """Whether a folder exists (in object storage: whether there is an object below it)."""
    filesystem, path = resolve(location)
    return bool(with_retries(location, lambda: filesystem.get_file_info(path)).type == fs.FileType.Directory)


def list_files(location: str) -> Iterator[FileEntry]:
    """All files below a folder: first its own by name, then those of its subfolders; of a hidden folder NAME/… alone.

    Folders are read one at a time, so that memory holds the names of one folder.

    Raises:
        UserError: a folder cannot be read.
    """
    filesystem, path = resolve(location)
    root = path.rstrip("/") + "/"
    folders = [path]
    while folders:
        select = functools.partial(filesystem.get_file_info, fs.FileSelector(folders.pop()))
        found = sorted(with_retries(location, select), key=lambda info: str(info.path))
        inside = []
        for info in found:
            if info.type == fs.FileType.File:
                yield FileEntry(info.path.removeprefix(root), int(info.size))
            elif info.type == fs.FileType.Directory and info.base_name.startswith("."):
                yield FileEntry(f"{info.path.removeprefix(root)}/…", 0)
            elif info.type == fs.FileType.Directory:
                inside.append(info.path)
        folders += reversed(inside)


def list_names(location: str) -> set[str]:
    """Names of the files and folders directly in a folder.

    Raises:
        UserError: the folder cannot be read.
    """
    filesystem, path = resolve(location)
    return {info.base_name for info in with_retries(location, lambda: filesystem.get_file_info(fs.FileSelector(path)))}


def open_file(location: str) -> pa.NativeFile:
    """Opens a file for random access.

    Raises:
        UserError: it cannot be opened, or is a pipe or a device.
    """
    filesystem, path = resolve(location)

    def request() -> pa.NativeFile:
        if not is_remote(location):
            open_regular(Path(path)).close()
        return filesystem.open_input_file(path)

    return with_retries(location, request)


def retry(request: Callable[[], Result], delays: Sequence[float]) -> Result:
    """The result of a request, repeated after each of `delays` (in seconds) as long as it fails.

    Raises:
        OSError, pa.ArrowException: the last failure, or the first of PERMANENT_ERRORS.
    """
    for delay in delays:
        try:
            return request()
        except PERMANENT_ERRORS:
            raise
        except (OSError, pa.ArrowException):
            time.sleep(delay)
    return request()


def with_retries(location: str, request: Callable[[], Result]) -> Result:
    """The result of a request to a location, which is repeated if the location is an address.

    Raises:
        UserError: it fails; names the location.
    """
    name = redact(location)
    try:
        return retry(request, RETRY_DELAYS if is_remote(location) else ())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{name} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder, not a file") from None
    except PermissionError:
        raise UserError(f"{name} cannot be read: permission denied; ask for access, or log in") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{name} cannot be read: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    """The first line of an error, without secrets of the addresses in it."""
    return redact(errors.first_line(error))


def _read_local(location: str, offset: int, size: int) -> bytes:
    try:
        descriptor = os.open(location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe never blocks it
    except OSError as error:
        raise UserError(f"{location} cannot be read: {error.strerror}") from None
    try:
        return os.pread(descriptor, size, offset)
    except OSError as error:
        raise UserError(f"{location} cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)


@functools.lru_cache(maxsize=OPEN_FILES)
def _open_remote(location: str) -> pa.NativeFile:
    return open_file(location)


def _read_remote(location: str, offset: int, size: int) -> bytes:
    content: bytes = with_retries(location, lambda: _open_remote(location).read_at(size, offset))
    return content


def _by_fsspec(location: str, error: Exception) -> tuple[fs.FileSystem, str]:
    try:
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError, OSError) as second:
        native = location.startswith(("s3://", "gs://", "hdfs://"))
        raise _Unknown(first_line(error if native else second)) from None
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
