"""Reads the files of a data set below an address: several blocks at once, repeated when they fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow.fs import LocalFileSystem

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.files import BLOCK

REQUESTS = 4
"""Blocks of one file that are requested at the same time, and held in memory until it is their turn."""
Result = TypeVar("Result")


class RemoteDataset:
    """The folder of a data set, on a disk or in object storage.

    Args:
        location: a path, or an address such as s3://bucket/folder.

    Raises:
        UserError: no such address can be read.
    """

    def __init__(self, location: str) -> None:
        self._location = storage.redact(location).rstrip("/")
        self._filesystem, path = storage.resolve(location)
        self._path = path.rstrip("/")

    def address(self, name: str) -> str:
        """Address of a file, without user name and password, for messages."""
        folder, _, options = self._location.partition("?")
        return f"{folder.rstrip('/')}/{name}" + (f" ({options})" if options else "")

    def read(self, name: str, limit: int) -> bytes:
        """All of a small file, or its first limit + 1 bytes.

        Raises:
            UserError: it cannot be read.
        """
        path = Path(self._path, name)
        if isinstance(self._filesystem, LocalFileSystem) and path.exists() and not path.is_file():
            raise UserError(f"{path} is not a regular file: prepare the data set again")
        content: bytes = self._repeat(name, lambda: self._open(name).read(limit + 1))
        return content

    def blocks(self, name: str, begin: int, end: int) -> Iterator[bytes]:
        """The bytes `begin` to `end` of a file that has `end` bytes, in order; the next ones are read ahead.

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
            finally:  # also when the caller stops early
                for task in pending:
                    task.cancel()

    def _open(self, name: str) -> pa.NativeFile:
        return self._filesystem.open_input_file(f"{self._path}/{name}")

    def _repeat(self, name: str, request: Callable[[], Result]) -> Result:
        address = self.address(name)
        try:
            return storage.retry(request, storage.RETRY_DELAYS)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{address} is missing: is this the address of a prepared data set?") from None
        except PermissionError:
            raise UserError(f"{address} cannot be read: permission denied; ask for access, or log in") from None
        except (OSError, pa.ArrowException) as error:
            tried = f"tried {len(storage.RETRY_DELAYS) + 1} times ({storage.first_line(error)})"
            raise UserError(f"{address} cannot be read, {tried}: fix the cause, or rerun the command later") from None
