"""Reads the files of a split completely and reports every difference from the manifest.

A file is read once, in windows of images: their bytes are read and hashed, then checked and decoded by several threads
while the next window is read. Memory holds a few windows, for files of any size.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np

from data_prep.codec.decode import JOB, check, whole
from data_prep.common.errors import UserError
from data_prep.common.files import BLOCK
from data_prep.format import beton
from data_prep.format.beton import JPEG, RAW, Sample, SampleInfo, Shard
from data_prep.format.manifest import MANIFEST_FILE, File, Split, SplitName
from data_prep.maintain.verification_report import VerificationReport

_WINDOW = 64  # images that are located, and then decoded by one thread
_AHEAD = 2  # windows that are read ahead, beyond one for each thread

Advance = Callable[[int], None]


class SplitCheck:
    """Checks one split.

    Args:
        folder: of the data set.
        name: of the split.
        report: receives the problems.
        threads: number of threads that decode.
    """

    def __init__(self, folder: Path, name: SplitName, report: VerificationReport, threads: int) -> None:
        self.folder = folder
        self.name = name
        self.split = report.manifest.splits[name]
        self.report = report
        self.threads = threads
        self.complete = True
        """Every sample was found, so that counts are those of the whole split."""
        self.max_side = 0
        """In pixels, of the images seen so far."""
        self.min_side = beton.MAX_SIDE
        self._per_class = np.zeros(len(report.manifest.classes), np.int64)
        self._bytes = self._raw = 0
        self._parts = _Parts(self.split, report)

    def run(self, pool: ThreadPoolExecutor, advance: Advance) -> None:
        """Checks all files; `pool` decodes."""
        for file in self.split.files:
            self._check_file(file, pool, advance)
        if not self.complete:
            return
        found = {"samples_per_class": self._per_class.tolist(), "bytes": self._bytes, "raw": self._raw}
        for name, value in found.items():
            if value != getattr(self.split, name):
                self.report.add(MANIFEST_FILE, None, f"{name} of {self.name} is not that of its files")

    def _check_file(self, file: File, pool: ThreadPoolExecutor, advance: Advance) -> None:
        path = self.folder / file.file
        seen = 0
        samples_before = self._parts.taken
        try:
            size = path.stat().st_size
            if size != file.bytes:
                raise _UnreadableError(f"it has {size} bytes instead of {file.bytes}")
            with _HashedFile(path) as hashed_file:
                try:
                    for count in self._read(file, hashed_file, pool):
                        advance(count)
                        seen += count
                except _UnreadableError as error:
                    self.report.add(file.file, None, str(error))
                if hashed_file.hash() != file.sha256:
                    self.report.add(file.file, None, "its bytes changed, its SHA-256 is not the manifest's")
                self.report.files += 1
        except FileNotFoundError:
            self.report.add(file.file, None, "it is missing")
        except OSError as error:
            self.report.add(file.file, None, f"it cannot be read: {error.strerror}")
        except _UnreadableError as error:
            self.report.add(file.file, None, str(error))
        if seen < file.samples:
            self.complete = False
            self._parts.skip_to(samples_before + file.samples)
            advance(file.samples - seen)

    def _read(self, file: File, hashed_file: _HashedFile, pool: ThreadPoolExecutor) -> Iterator[int]:
        """Checks the samples of a file; yields numbers of samples that were checked."""
        shard = _open(hashed_file.path)
        if shard.samples != file.samples:
            raise _UnreadableError(f"it holds {shard.samples} samples instead of {file.samples}")
        hashed_file.advance(beton.METADATA_START + shard.metadata.nbytes)
        borders = [*range(0, shard.samples, _WINDOW), shard.samples]
        unordered = False
        with ThreadPoolExecutor(1) as in_order:
            pending: deque[tuple[int, list[Future[None]]]] = deque()
            for first, last in pairwise(borders):
                numbers = np.arange(first, last)
                unordered |= not np.array_equal(shard.table["sample"][first:last], numbers)
                numbers, entry = self._locate(file, shard, numbers)
                hashed_file.advance(int((entry.start + entry.size).max(initial=0)))  # the disk's errors show here
                self._check_index(file, shard, numbers, entry)
                hashing = in_order.submit(self._parts.take, file, shard, first, last, numbers, entry)
                decoding = pool.submit(self._decode, file, shard, numbers, entry)
                pending.append((last - first, [hashing, decoding]))
                if len(pending) > _AHEAD + self.threads:
                    yield _finish(*pending.popleft())
            while pending:
                yield _finish(*pending.popleft())
        if unordered and not np.array_equal(np.sort(shard.table["sample"]), np.arange(shard.samples)):
            self.report.add(file.file, None, "its allocation table does not name every sample once")

    def _locate(self, file: File, shard: Shard, numbers: np.ndarray) -> tuple[np.ndarray, SampleInfo]:
        """Locates samples; those that cannot be located are reported and omitted."""
        try:
            return numbers, shard.locate(numbers)
        except UserError:
            found = []
            for number in numbers:
                try:
                    shard.locate(np.array([number]))
                    found.append(number)
                except UserError:
                    self.report.add(file.file, int(number), "its position, size or mode is invalid")
            self.complete = False
            return np.array(found, np.int64), shard.locate(np.array(found, np.int64))

    def _check_index(self, file: File, shard: Shard, numbers: np.ndarray, entry: SampleInfo) -> None:
        """Checks the metadata of samples, and counts them."""
        classes, manifest = len(self._per_class), self.report.manifest
        known = (entry.label >= 0) & (entry.label < classes)
        for number, label in zip(numbers[~known], entry.label[~known], strict=True):
            self.report.add(file.file, int(number), f"its label {label} is not one of the {classes} classes")
        smaller, larger = np.minimum(entry.height, entry.width), np.maximum(entry.height, entry.width)
        for i in np.flatnonzero((smaller < manifest.min_side) | (larger > manifest.max_side)):
            allowed = f"{manifest.min_side} to {manifest.max_side}"
            reason = f"it has {entry.height[i]}×{entry.width[i]} pixels, and sides must be {allowed}"
            self.report.add(file.file, int(numbers[i]), reason)
        crossing = entry.start // shard.page_size != (entry.start + entry.size - 1) // shard.page_size
        for number in numbers[crossing]:
            self.report.add(file.file, int(number), "it lies across the border of two pages")
        self._per_class += np.bincount(entry.label[known], minlength=classes)
        self._bytes += int(entry.size.sum())
        self._raw += int((entry.mode == RAW).sum())
        self.min_side = min(self.min_side, int(smaller.min(initial=beton.MAX_SIDE)))
        self.max_side = max(self.max_side, int(larger.max(initial=0)))

    def _decode(self, file: File, shard: Shard, numbers: np.ndarray, entry: SampleInfo) -> None:
        stored = np.flatnonzero((entry.mode != RAW) & (entry.height > 0) & (entry.width > 0) & (entry.size > 0))
        jobs = np.zeros(len(stored), JOB)
        for job, i in enumerate(stored):
            content = shard.content[entry.start[i] :][: entry.size[i]]
            jobs[job] = whole(content, JPEG, *_sides(entry, int(i)))
        problems = check(jobs)
        for problem in problems:
            self.report.add(file.file, int(numbers[stored[problem.row]]), f"it does not decode: {problem.message}")
        self.report.count(len(numbers) - len(problems))


class _UnreadableError(Exception):
    """A file cannot be read; the message says why."""


class _HashedFile:
    """A file that is read sequentially and hashed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        self._digest = hashlib.sha256()
        self._position = 0
        self._buffer = memoryview(bytearray(BLOCK))

    def advance(self, end: int | None = None) -> None:
        """Reads to byte `end` at least, or to the end of the file.

        Raises:
            OSError: the disk fails, which would kill the process when it reads from a memory map.
        """
        while (end is None or self._position < end) and (count := self._file.readinto(self._buffer)):
            self._digest.update(self._buffer[:count])
            self._position += count

    def hash(self) -> str:
        """SHA-256 of the whole file, in hexadecimal."""
        self.advance()
        return self._digest.hexdigest()

    def __enter__(self) -> _HashedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


class _Parts:
    """Compares the hash of each part of a split with its samples, which are added in order."""

    def __init__(self, split: Split, report: VerificationReport) -> None:
        self._report = report
        self._parts = iter(split.parts)
        self.taken = 0
        """Number of samples of the split that were added or skipped."""
        self._begin()

    def _begin(self) -> None:
        self._part = next(self._parts, None)
        self._left = self._part.samples if self._part else 0
        self._digest = hashlib.sha256()
        self._whole = True
        self._place = ("", 0)

    def take(self, file: File, shard: Shard, first: int, last: int, numbers: np.ndarray, entry: SampleInfo) -> None:
        """Adds the samples first … last−1 of a file, of which `numbers` were located."""
        found = {int(number): i for i, number in enumerate(numbers)}
        for number in range(first, last):
            if self._part is not None and self._left == self._part.samples:
                self._place = (file.file, number)
            if number in found:
                i = found[number]
                content = shard.content[entry.start[i] :][: entry.size[i]]
                beton.digest_sample(
                    self._digest, Sample(content, int(entry.mode[i]), *_sides(entry, i), int(entry.label[i]))
                )
            else:
                self._whole = False
            self._count_down()

    def skip_to(self, number: int) -> None:
        """Skips the samples of the split before `number`, which cannot be read; their parts are not compared."""
        while self.taken < number:
            self._whole = False
            self._count_down()

    def _count_down(self) -> None:
        self.taken += 1
        self._left -= 1
        if self._left > 0 or self._part is None:
            return
        if self._whole and self._digest.hexdigest() != self._part.sha256:
            file, first = self._place
            reason = f"this and the next {self._part.samples - 1} samples are not those that were prepared"
            self._report.add(file, first, f"{reason}: the SHA-256 of their content is not the manifest's")
        self._begin()


def _open(path: Path) -> Shard:
    try:
        return Shard(path)
    except UserError as error:
        reason = str(error).removeprefix(f"shard {path} ").removesuffix(f": {beton.REMEDY}")
        raise _UnreadableError(f"it {reason}") from None


def _sides(entry: SampleInfo, i: int) -> tuple[int, int]:
    return int(entry.height[i]), int(entry.width[i])


def _finish(count: int, tasks: list[Future[None]]) -> int:
    for task in tasks:
        task.result()
    return count
