"""Append-only files of lines, a record each: what a run keeps of itself while it trains.

A record is written once. What a full disk or a power failure tears is a line that readers skip; the record that it
belonged to is written again, as long as its writer lives.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

Record = TypeVar("Record")


class JournalWriter:
    """Appends lines to a file and flushes them to the disk.

    Args:
        file: created with its folder when the first line is written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._waiting: deque[bytes] = deque()

    def add(self, line: str) -> None:
        """Queues a line, without touching the disk."""
        self._waiting.append(line.encode() + b"\n")

    def flush(self) -> None:
        """Writes all lines that wait, and flushes them: many for the price of one. Those that a full or failing disk
        refuses wait for the next call. To be called by one thread at a time."""
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not lines:
            return
        try:
            self._file.parent.mkdir(exist_ok=True)
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError:
            self._waiting.extendleft(reversed(lines))
            return
        try:
            self._append(descriptor, b"".join(lines))
        except OSError:
            self._waiting.extendleft(reversed(lines))
        else:
            with suppress(OSError):  # the lines are with the system, which will try again
                os.fsync(descriptor)
        finally:
            with suppress(OSError):
                os.close(descriptor)

    def _append(self, descriptor: int, content: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # torn by an earlier failure
            content = b"\n" + content
        try:
            written = os.write(descriptor, content)
            if written < len(content):  # raises the reason
                os.write(descriptor, content[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise


class JournalReader(Generic[Record]):
    """Reads a file of lines that grows: each call reads what is new.

    Args:
        file: need not exist.
        parse: a line → its record; raises a ValueError for a torn or damaged one, which is skipped.
    """

    def __init__(self, file: Path, parse: Callable[[bytes], Record]) -> None:
        self._file, self._parse = file, parse
        self._records: list[Record] = []
        self._offset = self._inode = 0

    def read(self) -> list[Record]:
        """All records so far.

        Raises:
            OSError: the file cannot be read; the next call may succeed.
        """
        try:
            with self._file.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < self._offset or status.st_ino != self._inode:  # another file
                    self._records, self._offset, self._inode = [], 0, status.st_ino
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            self._records, self._offset, self._inode = [], 0, 0
            return self._records
        complete = content.rfind(b"\n") + 1
        for line in content[:complete].split(b"\n"):
            if line.strip():
                with suppress(ValueError):
                    self._records.append(self._parse(line))
        self._offset += complete
        return self._records
