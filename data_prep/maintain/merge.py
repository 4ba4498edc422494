"""Merges the shards of each split into one FFCV file, for loaders that read one file: same samples, same order.

Samples are copied, not encoded again. A merged file begins with the metadata of all shards; then follow the data of
each shard, byte for byte, moved by a multiple of its page size, so that no sample crosses the border of two pages; then
the allocation tables. It is written sequentially and hashed on the way, and so is every shard that is read: a damaged
shard is found before the merged file is used.

In place, one split after the other is merged: the merged file is written under a temporary name and renamed, the names
of its shards are noted, the manifest is replaced, the shards are removed. Whenever the command is killed, the data set
loads; the next command removes leftovers, and starts the interrupted split from its beginning.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from data_prep.common.errors import UserError
from data_prep.common.files import (
    BLOCK,
    MADE_HERE,
    discard,
    explain_os_errors,
    hash_file,
    is_free,
    locked,
    partials_in,
    replaceable,
    replacing,
    require_space,
    sync_folder,
    unfinished_folder,
    write_atomically,
)
from data_prep.format import beton
from data_prep.format.beton import METADATA, Shard
from data_prep.format.manifest import (
    MANIFEST_FILE,
    File,
    Manifest,
    Split,
    SplitName,
    load_manifest,
    read_manifest,
    write_manifest,
)

MERGED_NOTE = ".merged.json"
"""File in a data set's folder with the entries of merged shards, to be removed when the manifest omits them."""
MERGE_LOCK = ".merge.lock"
_FILES = TypeAdapter(list[File])
_ROWS = 2**18  # of metadata or table that are held in memory at once

Advance = Callable[[int], None]


class MergeResult(NamedTuple):
    """The result of :func:`merge`."""

    folder: Path
    manifest: Manifest
    already_there: bool
    """The data set was merged before."""


def merge(folder: Path, output: Path | None = None, advance: Advance = lambda count: None) -> MergeResult:
    """Merges the shards of a prepared data set.

    Args:
        folder: of the data set.
        output: a new folder for the merged data set; without it the data set in `folder` becomes the merged one.
        advance: called with numbers of bytes that were read, :func:`bytes_to_read` in total.

    Raises:
        UserError: the data set is missing or incomplete, a shard is damaged, another command is merging it, `output`
            is another data set, or the disk is full or fails.
    """
    read_manifest(folder)
    output = output and replaceable(output)
    if output is None or output == folder.resolve():
        busy = f"{folder} is being merged by another command: wait until it ends"
        with explain_os_errors(folder, resumable=False), locked(folder / MERGE_LOCK, busy):
            return _merge_in_place(folder, advance)
    with explain_os_errors(output, resumable=False):
        output.parent.mkdir(parents=True, exist_ok=True)
        busy = f"{output} is being written by another command: wait until it ends"
        with locked(output.with_name(f".{output.name}.lock"), busy):
            return _merge_to(folder, output, advance)


def bytes_to_read(folder: Path) -> int:
    """Number of bytes that :func:`merge` reads to merge a data set in place."""
    return sum(file.bytes for name, split in _unmerged(read_manifest(folder)) for file in split.files)


def _merge_in_place(folder: Path, advance: Advance) -> MergeResult:
    manifest = load_manifest(folder)
    _remove_leftovers(folder, manifest)
    unmerged = _unmerged(manifest)
    for name, split in unmerged:
        require_space(folder, _bytes_needed(split), "or name an OUTPUT on another disk")
        merged = _merge_split(folder, split, folder / _free_name(name, split), advance)
        manifest = manifest.model_copy(update={"splits": {**manifest.splits, name: merged}})
        write_atomically(folder / MERGED_NOTE, _FILES.dump_json(split.files))
        write_manifest(folder, manifest)
        _remove_leftovers(folder, manifest, hashed=True)
    return MergeResult(folder, manifest, not unmerged)


def _merge_to(folder: Path, output: Path, advance: Advance) -> MergeResult:
    manifest = load_manifest(folder)
    if not is_free(output):
        existing = load_manifest(output) if (output / MANIFEST_FILE).exists() else None
        if existing is None or existing.digest != manifest.digest or _unmerged(existing):
            raise UserError(
                f"{output} already exists and is not this data set: choose another OUTPUT, or delete it first"
            )
        (output / MADE_HERE).unlink(missing_ok=True)  # of a command that was killed after its last step but one
        return MergeResult(output, existing, already_there=True)
    partial = unfinished_folder(output, "merging")
    for leftover in partial.iterdir():  # of a command that was killed
        if leftover.name != MADE_HERE:
            discard(leftover)
    try:
        require_space(partial, sum(map(_bytes_needed, manifest.splits.values())), "or choose another disk")
        splits = {
            name: _merge_split(folder, split, partial / f"{name}.beton", advance)
            for name, split in manifest.splits.items()
        }
        manifest = manifest.model_copy(update={"splits": splits})
        write_manifest(partial, manifest)
        if output.is_dir():
            output.rmdir()  # empty
        partial.rename(output)
        sync_folder(output.parent)
        (output / MADE_HERE).unlink()
    finally:
        discard(partial)
    return MergeResult(output, manifest, already_there=False)


def _unmerged(manifest: Manifest) -> list[tuple[SplitName, Split]]:
    return [(name, split) for name, split in manifest.splits.items() if len(split.files) > 1]


def _bytes_needed(split: Split) -> int:
    """Upper bound of the bytes of a split's merged file."""
    return sum(file.bytes for file in split.files)


def _free_name(name: SplitName, split: Split) -> str:
    """A name for the merged file that is not the name of a shard."""
    taken = {file.file for file in split.files}
    return next(
        free for free in (f"{name}{'-merged' * times}.beton" for times in range(len(taken) + 1)) if free not in taken
    )


def _remove_leftovers(folder: Path, manifest: Manifest, hashed: bool = False) -> None:
    """Removes the merged shards that the manifest does not name, and files that were being written.

    A file that has the name of a merged shard and other bytes stays; `hashed` says that the bytes have been compared.
    """
    for leftover in partials_in(folder):
        written = leftover.name[1:].rsplit(".", 2)[0]
        if written.endswith(".beton") or written in (MANIFEST_FILE, MERGED_NOTE):  # not a sheet of `inspect`, say
            leftover.unlink()
    note = folder / MERGED_NOTE
    if not note.exists():
        return
    named = {file.file for split in manifest.splits.values() for file in split.files}
    try:
        merged = _FILES.validate_json(note.read_bytes())
    except ValidationError:
        raise UserError(f"{note} is not what an interrupted merge leaves behind: remove it") from None
    for file in merged:
        path = folder / file.file
        if file.file in named or path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
            continue
        if hashed or hash_file(path) == file.sha256:
            path.unlink()
    note.unlink()


class _MovedShard(NamedTuple):
    """A shard and its position in the merged file; positions are in bytes."""

    path: Path
    file: File
    begin: int
    """First byte of its data in the shard, a multiple of the page size."""
    end: int
    """End of its data in the shard."""
    start: int
    """First byte of its data in the merged file."""
    first_sample: int
    """Number of its first sample in the merged file."""


def _merge_split(folder: Path, split: Split, target: Path, advance: Advance) -> Split:
    if not split.files:
        return split
    pieces, page_size = _plan(folder, split)
    last = pieces[-1]
    table_start = last.start + last.end - last.begin
    with replacing(target) as file, ThreadPoolExecutor(2) as hashers:
        output = _Output(file)
        output.write(beton.head(page_size, split.samples, table_start))
        for piece in pieces:
            for rows in _rows(Shard(piece.path).metadata):
                output.write(_moved(rows, piece.start - piece.begin))
        for piece in pieces:
            output.fill(piece.start)
            _copy(piece, output, hashers, advance)
        for piece in pieces:
            for table in _rows(Shard(piece.path).table):
                output.write(_renumbered(table, piece))
    merged = File(file=target.name, samples=split.samples, bytes=output.position, sha256=output.digest.hexdigest())
    return split.model_copy(update={"files": [merged]})


def _plan(folder: Path, split: Split) -> tuple[list[_MovedShard], int]:
    """The position of each shard, and the page size, the largest of all shards.

    Page sizes are powers of two: a sample inside one page is also inside one page of twice the size.
    """
    pieces: list[_MovedShard] = []
    largest = beton.SMALLEST_PAGE
    position = beton.METADATA_START + split.samples * METADATA.itemsize
    samples = 0
    for file in split.files:
        path = folder / file.file
        shard = Shard(path)  # one at a time: there may be more shards than files that a process may open
        if shard.samples != file.samples:
            raise _mismatch(path, f"it holds {shard.samples} samples instead of {file.samples}")
        first = min(int(rows["image"]["data_ptr"].min()) for rows in _rows(shard.metadata))
        begin = first // shard.page_size * shard.page_size
        if not beton.METADATA_START <= first < shard.data_end:
            raise _mismatch(path, "its samples lie outside of it")
        start = beton.align(position, shard.page_size)
        pieces.append(_MovedShard(path, file, begin, shard.data_end, start, samples))
        position = start + shard.data_end - begin
        samples += shard.samples
        largest = max(largest, shard.page_size)
    if samples != split.samples:
        raise UserError(f"{folder / MANIFEST_FILE} counts {split.samples} samples, its files {samples}: {beton.REMEDY}")
    return pieces, largest


def _rows(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[first : first + _ROWS] for first in range(0, len(array), _ROWS))


def _moved(rows: np.ndarray, shift: int) -> bytes:
    moved = rows.copy()
    moved["image"]["data_ptr"] = (rows["image"]["data_ptr"].astype(np.int64) + shift).astype(np.uint64)
    return moved.tobytes()


def _renumbered(rows: np.ndarray, piece: _MovedShard) -> bytes:
    moved = rows.copy()
    moved["sample"] += np.uint64(piece.first_sample)
    moved["ptr"] = (rows["ptr"].astype(np.int64) + piece.start - piece.begin).astype(np.uint64)
    return moved.tobytes()


class _Output:
    """A file that is written sequentially, and its hash."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.position = 0

    def write(self, content: bytes | memoryview) -> None:
        self.digest.update(content)
        self.append(content)

    def append(self, content: bytes | memoryview) -> None:
        """Writes bytes that the caller adds to the hash."""
        self.file.write(content)
        self.position += len(content)

    def fill(self, end: int) -> None:
        """Writes zeros up to `end`."""
        while self.position < end:
            self.write(bytes(min(BLOCK, end - self.position)))


def _copy(piece: _MovedShard, output: _Output, hashers: ThreadPoolExecutor, advance: Advance) -> None:
    """Copies the data of a shard, and checks the hash of all of it."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    with piece.path.open("rb", buffering=0) as file:
        for first, last in _blocks((0, piece.begin, piece.end, piece.file.bytes)):
            block = buffer[: last - first]
            if file.readinto(block) != len(block):
                raise _mismatch(piece.path, "it ends early")
            hashing = [hashers.submit(digest.update, block)]
            if piece.begin <= first < piece.end:
                hashing.append(hashers.submit(output.digest.update, block))
                output.append(block)
            for task in hashing:
                task.result()
            advance(len(block))
    if digest.hexdigest() != piece.file.sha256:
        raise _mismatch(piece.path, "its SHA-256 is another one")


def _blocks(borders: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First byte and end of blocks of at most BLOCK bytes, none across a border."""
    for begin, end in itertools.pairwise(borders):
        for first in range(begin, end, BLOCK):
            yield first, min(first + BLOCK, end)


def _mismatch(path: Path, reason: str) -> UserError:
    return UserError(f"shard {path} is not what its manifest describes, {reason}: {beton.REMEDY}")
