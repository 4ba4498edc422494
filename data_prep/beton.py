"""FFCV's file format (.beton, version 2) with the fields `image` (JPEG bytes) and `label`: a small writer and an index.

A file is, in this order, all little-endian:

====================  ===========================================================================================
header (24 bytes)     version, number of fields, page size, number of samples, where the allocation table begins
fields (1,041 each)   type and name of each field: ``image`` is FFCV's RGBImageField, ``label`` its IntField
metadata (24 each)    of each sample: mode (0 is JPEG), width, height, where its bytes begin, label
data                  the JPEG bytes; no sample lies across the border of two pages
allocation table      of each sample: number, where its bytes begin, how many; it ends with the file
====================  ===========================================================================================

FFCV's own writer waits for ever when one of its processes dies, and its reader believes unfinished files. This writer
holds one sample in memory, and a file gets its name when it is complete and on the disk; this index checks that every
sample lies inside the file. FFCV's own Reader and Loader open these files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_prep.errors import UserError

VERSION = 2
JPEG_MODE = 0
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
INDEX = np.dtype(
    [("label", "<i8"), ("mode", "u1"), ("height", "<u2"), ("width", "<u2"), ("data_ptr", "<u8"), ("size", "<u8")]
)

FIELDS = np.zeros(2, FIELD)
FIELDS["type"] = [2, 1]  # RGBImageField, IntField
FIELDS["name"] = [b"image", b"label"]
METADATA_START = HEADER.itemsize + FIELDS.nbytes


class Sample(NamedTuple):
    """What is stored of one image."""

    jpeg: bytes
    height: int
    width: int
    label: int


@dataclass(frozen=True)
class OpenShard:
    """An open file: where everything is, and its bytes."""

    path: Path
    index: np.ndarray
    """(samples,) of type INDEX: label, mode, height, width, data_ptr and size (in bytes) of each sample."""
    content: np.ndarray
    """(file size,) uint8, mapped into memory: sample i is ``content[data_ptr[i] : data_ptr[i] + size[i]]``."""

    def jpeg(self, sample: int) -> np.ndarray:
        """The JPEG bytes of a sample, (size,) uint8, read-only; nothing is copied."""
        entry = self.index[sample]
        start = int(entry["data_ptr"])
        return self.content[start : start + int(entry["size"])]


def write_shard(path: Path, samples: Iterable[Sample], count: int) -> None:
    """Writes exactly `count` samples to `path`, which appears only when it is complete and on the disk.

    Raises:
        ValueError: `samples` yields another number of samples than `count`, or one that the format cannot hold.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(file, samples, count)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_shard(path: Path) -> OpenShard:
    """Opens a file and checks that all its parts are there.

    Raises:
        UserError: the file is missing, unfinished, cut off, not of this format, or holds other fields than a JPEG image
            and a label.
    """
    try:
        content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UserError(f"shard {path} cannot be read: {error}") from None
    header = _check_header(path, content)
    samples, table_start = int(header["samples"]), int(header["table"])
    metadata = np.frombuffer(content, METADATA, samples, METADATA_START)
    table = np.frombuffer(content, ALLOCATION, samples, table_start)
    return OpenShard(path, _build_index(path, metadata, table, table_start), content)


def _write(file: BinaryIO, samples: Iterable[Sample], count: int) -> None:
    metadata = np.zeros(count, METADATA)
    table = np.zeros(count, ALLOCATION)
    page_size = SMALLEST_PAGE
    position = _align(METADATA_START + metadata.nbytes, page_size)
    written = 0
    for written, sample in enumerate(samples, start=1):
        if written > count:
            raise ValueError(f"more samples than the {count} announced")
        size = len(sample.jpeg)
        page_size = _page_size(page_size, size)
        if position // page_size != (position + size - 1) // page_size:
            position = _align(position, page_size)
        file.seek(position)
        file.write(sample.jpeg)
        _describe(metadata[written - 1], sample, position)
        table[written - 1] = (written - 1, position, size)
        position += size
    if written != count:
        raise ValueError(f"{written} samples instead of the {count} announced")
    file.seek(position)
    file.write(table.tobytes())
    file.seek(0)
    file.write(np.array((VERSION, len(FIELDS), page_size, count, position), HEADER).tobytes())
    file.write(FIELDS.tobytes())
    file.write(metadata.tobytes())


def _page_size(current: int, size: int) -> int:
    """The page size that fits a sample of `size` bytes as well.

    It may grow while the file is written: whatever lies inside one page lies inside one of the pages of twice the size.
    """
    if not 0 < size <= LARGEST_PAGE:
        raise ValueError(f"a sample of {size} bytes; it must have 1 to {LARGEST_PAGE}")
    while current < size:
        current *= 2
    return current


def _align(position: int, page_size: int) -> int:
    return -(-position // page_size) * page_size


def _describe(entry: np.void, sample: Sample, position: int) -> None:
    if not (0 < sample.height <= MAX_SIDE and 0 < sample.width <= MAX_SIDE):
        raise ValueError(f"an image of {sample.height}×{sample.width} pixels; sides must be 1 to {MAX_SIDE}")
    entry["image"] = (JPEG_MODE, sample.width, sample.height, position)
    entry["label"] = sample.label


def _check_header(path: Path, content: np.ndarray) -> np.void:
    remedy = "prepare the data set again"
    if len(content) < METADATA_START:
        raise UserError(f"shard {path} is cut off after {len(content)} bytes: {remedy}")
    header = np.frombuffer(content, HEADER, 1)[0]
    fields = np.frombuffer(content, FIELD, len(FIELDS), HEADER.itemsize)
    if header["version"] != VERSION:
        raise UserError(f"shard {path} is not an FFCV file of version {VERSION}: {remedy}")
    same_fields = np.array_equal(fields["type"], FIELDS["type"]) and np.array_equal(fields["name"], FIELDS["name"])
    if header["fields"] != len(FIELDS) or not same_fields:
        raise UserError(f"shard {path} holds other fields than an image and a label: {remedy}")
    samples, table_start = int(header["samples"]), int(header["table"])
    if table_start == 0:
        raise UserError(f"shard {path} is unfinished, its writer was interrupted: {remedy}")
    if table_start < METADATA_START + samples * METADATA.itemsize:
        raise UserError(f"shard {path} is damaged, its allocation table lies inside its metadata: {remedy}")
    if table_start + samples * ALLOCATION.itemsize != len(content):
        raise UserError(f"shard {path} has {len(content)} bytes, which do not hold its {samples} samples: {remedy}")
    return header


def _build_index(path: Path, metadata: np.ndarray, table: np.ndarray, data_end: int) -> np.ndarray:
    """The samples of `metadata` with their sizes, which only the allocation table (in any order) knows."""
    index = np.empty(len(metadata), INDEX)
    index["label"] = metadata["label"]
    for name in ("mode", "height", "width", "data_ptr"):
        index[name] = metadata["image"][name]
    sizes = dict(zip(table["ptr"].tolist(), table["size"].tolist(), strict=True))
    index["size"] = [sizes.get(pointer, 0) for pointer in index["data_ptr"].tolist()]
    if np.any(index["mode"] != JPEG_MODE):
        raise UserError(f"shard {path} holds raw pixels, and only JPEG can be read: prepare the data set again")
    # Subtraction instead of a sum: damaged numbers near 2^64 would wrap around.
    fits = (index["size"] > 0) & (index["data_ptr"] <= data_end) & (index["size"] <= data_end - index["data_ptr"])
    if not np.all(fits):
        sample = int(np.argmin(fits))
        raise UserError(f"shard {path} is damaged, sample {sample} lies outside of it: prepare the data set again")
    return index
