"""Where a data set is staged from: reads of files below an address, several at once, repeated when they fail."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from data_prep.disk import BLOCK
from data_prep.errors import UserError

REQUESTS = 4
"""Blocks of one file that are asked for at the same time; they wait in memory for their turn."""
PAUSES = (0.5, 2.0)
"""Seconds to wait after the first failure of a request and after the second; pyarrow repeats each request, too."""

Result = TypeVar("Result")


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address such as s3://bucket/folder, and the path in it.

    Raises:
        UserError: nobody knows such addresses.
    """
    if "://" not in location:
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    try:
        filesystem, path = fs.FileSystem.from_uri(location)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{without_secrets(location)} is no address that can be read: {_reason(error)}") from None
    return filesystem, path


def without_secrets(location: str) -> str:
    """An address as it may be shown: an access key in it is left out."""
    return re.sub(r"(?<=://)[^/@]*@", "", location)


class Origin:
    """The folder of a data set, wherever it is.

    Args:
        location: a path, or an address such as s3://bucket/folder.

    Raises:
        UserError: it is no such thing.
    """

    def __init__(self, location: str) -> None:
        self._location = without_secrets(location).rstrip("/")
        self._filesystem, path = resolve(location)
        self._path = path.rstrip("/")

    def address(self, name: str) -> str:
        """What to call a file in messages."""
        folder, _, options = self._location.partition("?")
        return f"{folder.rstrip('/')}/{name}" + (f" ({options})" if options else "")

    def read(self, name: str) -> bytes:
        """All of a small file.

        Raises:
            UserError: it cannot be read.
        """
        content: bytes = self._repeat(name, lambda: self._open(name).read())
        return content

    def blocks(self, name: str, begin: int, end: int) -> Iterator[bytes]:
        """The bytes `begin` to `end` of a file that has `end` bytes, in order; later ones are under way already.

        Raises:
            UserError: the file cannot be read, or has another size.
        """
        if begin == end:
            return
        file = self._repeat(name, lambda: self._open(name))
        size = self._repeat(name, file.size)
        if size != end:
            raise UserError(f"{self.address(name)} has {size} bytes instead of {end}: prepare or copy it again")

        def read(first: int) -> bytes:
            count = min(BLOCK, end - first)
            block: bytes = self._repeat(name, lambda: file.read_at(count, first))
            if len(block) != count:
                raise UserError(f"{self.address(name)} ended early, at byte {first + len(block)}: is it being changed?")
            return block

        with file, ThreadPoolExecutor(REQUESTS, "read") as pool:
            starts = iter(range(begin, end, BLOCK))
            pending: deque[Future[bytes]] = deque(pool.submit(read, first) for first in islice(starts, REQUESTS))
            try:
                while pending:
                    block = pending.popleft().result()
                    pending.extend(pool.submit(read, first) for first in islice(starts, 1))
                    yield block
            finally:  # also when nobody wants the rest
                for task in pending:
                    task.cancel()

    def _open(self, name: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(f"{self._path}/{name}")

    def _repeat(self, name: str, request: Callable[[], Result]) -> Result:
        for pause in (*PAUSES, None):
            try:
                return request()
            except (FileNotFoundError, NotADirectoryError):
                raise UserError(
                    f"{self.address(name)} is missing: is this the address of a prepared data set?"
                ) from None
            except PermissionError:
                raise UserError(f"{self.address(name)} may not be read: ask for the right to, or log in") from None
            except (OSError, pa.ArrowException) as error:
                if pause is None:
                    reason = f"tried {len(PAUSES) + 1} times ({_reason(error)})"
                    raise UserError(f"{self.address(name)} cannot be read, {reason}: mend that, or try later") from None
                time.sleep(pause)
        raise AssertionError("unreachable")


def _reason(error: Exception) -> str:
    """The first line of an error."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__
