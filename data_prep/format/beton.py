"""FFCV's file format (.beton, version 2) with the fields `image` (JPEG bytes) and `label`: a small writer and an index.

A file is, in this order, all little-endian:

====================  ===========================================================================================
header (24 bytes)     version, number of fields, page size, number of samples, where the allocation table begins
fields (1,041 each)   type and name of each field: ``image`` is FFCV's RGBImageField, ``label`` its IntField
metadata (24 each)    of each sample: mode (0 is JPEG, 1 is raw), width, height, where its bytes begin, label
data                  JPEG files or pixels; no sample lies across the border of two pages
allocation table      of each sample: number, where its bytes begin, how many; it ends with the file
====================  ===========================================================================================

FFCV's own writer hangs when one of its processes dies, and its reader accepts unfinished files. This writer holds one
sample in memory and renames a file to its final name when it is complete and on the disk; this reader checks that every
sample lies inside the file. FFCV's own Reader and Loader open these files.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import struct
from collections.abc import Iterable
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np

from data_prep.common.errors import UserError
from data_prep.common.files import open_regular, replacing

VERSION = 2
JPEG, RAW = 0, 1
"""Modes of an image: a JPEG file, or pixels."""
MAX_SIDE = 2**16 - 1
SMALLEST_PAGE = 2**21
LARGEST_PAGE = 2**31

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("image", IMAGE), ("label", "<i8")], align=True)
ALLOCATION = np.dtype([("sample", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
REMEDY = "prepare the data set again, or copy it again from an intact copy"

FIELDS = np.zeros(2, FIELD)
FIELDS["type"] = [2, 1]  # RGBImageField, IntField
FIELDS["name"] = [b"image", b"label"]
METADATA_START = HEADER.itemsize + FIELDS.nbytes


class Sample(NamedTuple):
    """A stored image and its label."""

    content: bytes | np.ndarray
    """A JPEG file, or (height × width × 3) uint8 pixels, red green blue."""
    mode: int
    """JPEG or RAW."""
    height: int
    """In pixels."""
    width: int
    label: int


class WrittenShard(NamedTuple):
    """Sizes and hashes of a file that :func:`write_shard` wrote."""

    samples: int
    content_bytes: int
    """Bytes of the samples alone."""
    content_sha256: str
    """See :func:`content_digest`."""
    file_bytes: int
    file_sha256: str


class SampleInfo(NamedTuple):
    """Location, format and label of samples; arrays with one element for each."""

    label: np.ndarray
    """int64."""
    mode: np.ndarray
    """uint8: JPEG or RAW."""
    height: np.ndarray
    """int64, in pixels."""
    width: np.ndarray
    start: np.ndarray
    """int64: the first byte, in the file."""
    size: np.ndarray
    """int64: bytes."""


class Shard:
    """Reader of one file. Opening it reads the header alone; samples are checked when they are located.

    Args:
        path: of the file.

    Raises:
        UserError: the file is missing, unfinished, truncated, not of this format, or has other fields than an image
            and a label.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise UserError(f"shard {path} cannot be read: {error}") from None
        self.content = np.frombuffer(self._map, np.uint8)
        """(file size,) uint8, mapped into memory, read-only."""
        header = _check_header(path, self.content)
        self.samples = int(header["samples"])
        self.page_size = int(header["page_size"])
        self.data_end = int(header["table"])
        """Byte at which the samples end and the allocation table begins."""
        self.metadata = np.frombuffer(self.content, METADATA, self.samples, METADATA_START)
        """(samples,) of type METADATA."""
        self.table = np.frombuffer(self.content, ALLOCATION, self.samples, self.data_end)
        """(samples,) of type ALLOCATION, in any order."""

    def locate(self, samples: np.ndarray) -> SampleInfo:
        """Locates samples, by their numbers (n,) in this file.

        Raises:
            UserError: a sample lies outside of the file, or has an unknown mode: the file is damaged.
        """
        entries = self.metadata[samples]
        image = entries["image"]
        start = image["data_ptr"]
        rows = self.table[samples]
        if not np.array_equal(rows["ptr"], start):  # FFCV's own writer leaves the table in the order of its processes
            by_place = self._table_by_place
            found = np.searchsorted(by_place["ptr"], start)
            rows = by_place[np.minimum(found, len(by_place) - 1)]
        size = np.where(rows["ptr"] == start, rows["size"], 0)
        raw = image["mode"] == RAW
        # Subtraction instead of a sum: damaged numbers near 2^64 would wrap around.
        fits = (size > 0) & (start <= self.data_end) & (size <= self.data_end - np.minimum(start, self.data_end))
        fits &= raw | (image["mode"] == JPEG)
        fits &= (image["height"] > 0) & (image["width"] > 0)
        fits &= ~raw | (size == 3 * image["height"].astype(np.uint64) * image["width"])
        if not np.all(fits):
            sample = int(np.asarray(samples)[np.argmin(fits)])
            raise UserError(
                f"shard {self.path} is damaged, position, size or mode of sample {sample} are invalid: {REMEDY}"
            )
        wide = [part.astype(np.int64) for part in (image["height"], image["width"], start, size)]
        return SampleInfo(entries["label"].astype(np.int64), image["mode"], *wide)

    def read(self, sample: int) -> Sample:
        """One sample; its bytes are a read-only view into the file, (size,) uint8."""
        label, mode, height, width, start, size = (int(part[0]) for part in self.locate(np.array([sample])))
        return Sample(self.content[start : start + size], mode, height, width, label)

    def prefetch(self, first: int, end: int) -> None:
        """Advises the system to read the consecutive samples first … end−1 ahead from the disk."""
        last = self.locate(np.array([first, end - 1]))
        begin, stop = int(last.start[0]), int(last.start[1] + last.size[1])
        if begin < stop and hasattr(mmap, "MADV_WILLNEED"):
            page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, stop - page)

    @functools.cached_property
    def _table_by_place(self) -> np.ndarray:
        return np.sort(self.table, order="ptr")


def write_shard(path: Path, samples: Iterable[Sample], capacity: int) -> WrittenShard:
    """Writes samples to a file, which gets its name when it is complete and on the disk.

    Args:
        path: of the new file; its folder exists.
        samples: at least one, at most `capacity`; one is held in memory at a time.
        capacity: number of samples for which space is reserved at the beginning of the file.

    Raises:
        ValueError: there is no sample, there are more than `capacity`, or the format cannot hold one.
    """
    with replacing(path) as file:
        return _write(file, samples, capacity)


def content_digest(samples: Iterable[Sample]) -> str:
    """SHA-256 over samples: of each, label, mode, height, width and size (int64, little-endian), then its bytes."""
    digest = hashlib.sha256()
    for sample in samples:
        digest_sample(digest, sample)
    return digest.hexdigest()


def digest_sample(digest: Any, sample: Sample) -> None:
    """Adds a sample to the hash of :func:`content_digest`."""
    numbers = (sample.label, sample.mode, sample.height, sample.width, len(sample.content))
    digest.update(struct.pack("<5q", *numbers))
    digest.update(sample.content)


def _write(file: BufferedRandom, samples: Iterable[Sample], capacity: int) -> WrittenShard:
    metadata = np.zeros(capacity, METADATA)
    table = np.zeros(capacity, ALLOCATION)
    digest = hashlib.sha256()
    page_size = SMALLEST_PAGE
    position = align(METADATA_START + metadata.nbytes, page_size)
    file.seek(position)
    count = 0
    for sample in samples:
        if count == capacity:
            raise ValueError(f"more samples than the {capacity} that there is room for")
        size = len(sample.content)
        page_size = _page_size(page_size, size)
        if position // page_size != (position + size - 1) // page_size:
            position = align(position, page_size)
            file.seek(position)
        file.write(cast(bytes, sample.content))
        _describe(metadata[count], sample, position)
        table[count] = (count, position, size)
        digest_sample(digest, sample)
        count += 1
        position += size
    if count == 0:
        raise ValueError("no samples to write")
    file.seek(position)
    file.write(table[:count].tobytes())
    write_head(file, page_size, metadata[:count], table_start=position)
    file.flush()
    file.seek(0)
    file_digest = hashlib.file_digest(file, "sha256").hexdigest()
    content_bytes = int(table["size"].sum())
    return WrittenShard(count, content_bytes, digest.hexdigest(), position + count * ALLOCATION.itemsize, file_digest)


def write_head(file: BinaryIO, page_size: int, metadata: np.ndarray, table_start: int) -> None:
    """Writes header, fields and metadata to the beginning of a file."""
    file.seek(0)
    file.write(head(page_size, len(metadata), table_start))
    file.write(metadata.tobytes())


def head(page_size: int, samples: int, table_start: int) -> bytes:
    """Header and fields of a file, which precede its metadata."""
    return np.array((VERSION, len(FIELDS), page_size, samples, table_start), HEADER).tobytes() + FIELDS.tobytes()


def _page_size(current: int, size: int) -> int:
    """The page size that fits a sample of `size` bytes as well.

    It may grow while the file is written: a sample inside one page is also inside one page of twice the size.
    """
    if not 0 < size <= LARGEST_PAGE:
        raise ValueError(f"a sample of {size} bytes; it must have 1 to {LARGEST_PAGE}")
    while current < size:
        current *= 2
    return current


def align(position: int, page_size: int) -> int:
    """The first multiple of the page size at or above `position`."""
    return -(-position // page_size) * page_size


def _describe(entry: np.void, sample: Sample, position: int) -> None:
    if not (0 < sample.height <= MAX_SIDE and 0 < sample.width <= MAX_SIDE):
        raise ValueError(f"an image of {sample.height}×{sample.width} pixels; sides must be 1 to {MAX_SIDE}")
    if sample.mode == RAW and len(sample.content) != 3 * sample.height * sample.width:
        raise ValueError(f"{len(sample.content)} bytes for {sample.height}×{sample.width} raw pixels")
    entry["image"] = (sample.mode, sample.width, sample.height, position)
    entry["label"] = sample.label


def _check_header(path: Path, content: np.ndarray) -> np.void:
    if len(content) < METADATA_START:
        raise UserError(f"shard {path} is truncated after {len(content)} bytes: {REMEDY}")
    header = np.frombuffer(content, HEADER, 1)[0]
    fields = np.frombuffer(content, FIELD, len(FIELDS), HEADER.itemsize)
    if header["version"] != VERSION:
        raise UserError(f"shard {path} is not an FFCV file of version {VERSION}: {REMEDY}")
    same_fields = np.array_equal(fields["type"], FIELDS["type"]) and np.array_equal(fields["name"], FIELDS["name"])
    if header["fields"] != len(FIELDS) or not same_fields:
        raise UserError(f"shard {path} holds other fields than an image and a label: {REMEDY}")
    samples, table_start = int(header["samples"]), int(header["table"])
    if table_start == 0:
        raise UserError(f"shard {path} is unfinished, its writer was interrupted: {REMEDY}")
    if samples == 0:
        raise UserError(f"shard {path} holds no samples: {REMEDY}")
    page_size = int(header["page_size"])
    if page_size.bit_count() != 1 or not SMALLEST_PAGE <= page_size <= min(LARGEST_PAGE, 2 * len(content)):
        raise UserError(f"shard {path} is damaged, its page size is {page_size} bytes: {REMEDY}")
    if table_start < METADATA_START + samples * METADATA.itemsize:
        raise UserError(f"shard {path} is damaged, its allocation table lies inside its metadata: {REMEDY}")
    if table_start + samples * ALLOCATION.itemsize != len(content):
        raise UserError(f"shard {path} has {len(content)} bytes, which do not hold its {samples} samples: {REMEDY}")
    return header
