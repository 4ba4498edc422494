"""Writes a prepared data set: a source's images, in a shuffled order, as FFCV shards, and the manifest.

Everything is written into a hidden folder beside the output, which gets the output's name when it is complete and on
the disk: an output that exists is whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from filelock import FileLock, Timeout

from data_prep import manifest
from data_prep.beton import Sample, write_shard
from data_prep.decoding import DecodeError
from data_prep.errors import UserError
from data_prep.images import StoredImage, to_stored
from data_prep.manifest import Manifest, Shard, Source
from data_prep.sources import SPLITS, ImageSource, Split

MAX_SIDE = 512
"""Largest stored side by default, in pixels: most ImageNet photographs (500 pixels) keep their bytes."""
SHARD_SAMPLES = 4096
"""Images in a shard by default: photographs of 500 pixels make shards of about 450 MB."""
_LOCK = ".lock"
_TOOLS = ("phasecollapse", "ffcv", "numpy", "pillow")

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` leaves behind."""

    manifest: Manifest
    already_there: bool
    """An earlier command had finished the same request."""


def prepare(
    source: ImageSource,
    output: Path,
    *,
    seed: int,
    max_side: int = MAX_SIDE,
    shard_samples: int = SHARD_SAMPLES,
    advance: Callable[[], None] = lambda: None,
) -> Prepared:
    """Writes the images of `source` to the new folder `output`; calls `advance` after each image.

    Raises:
        UserError: the output exists and is something else, another command is writing it, an image cannot be decoded,
            or the disk refuses. Nothing is left behind then.
    """
    request = Source(
        kind=source.kind,
        location=source.location,
        digest=source.digest,
        options={"max_side": max_side, "shard_samples": shard_samples, **source.options},
    )
    if output.exists() and not _is_empty_folder(output):
        return Prepared(_recognize(output, request, seed), already_there=True)
    try:
        with _working_folder(output) as partial:
            written = _Writer(source, request, seed, partial, advance).write(output.name)
            partial.rename(output)
            _sync(output.parent)
            (output / _LOCK).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from None
    return Prepared(written, already_there=False)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _recognize(output: Path, request: Source, seed: int) -> Manifest:
    """The data set that is already in `output`, if it is what was asked for."""
    if not (output / manifest.FILE).exists():
        raise UserError(f"{output} already exists and is not a prepared data set: choose another output")
    try:
        existing = manifest.load(output)
    except UserError as error:
        raise UserError(f"{output} already exists, but is not whole: delete it first ({error})") from None
    if existing.source.model_copy(update={"location": request.location}) != request or existing.seed != seed:
        options = ", ".join(f"{name} {value}" for name, value in existing.source.options.items())
        raise UserError(
            f"{output} already holds another data set (source {existing.source.location}, seed {existing.seed}, "
            f"{options}): choose another output, or delete it first"
        )
    return existing


@contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """An empty folder beside `output`, for one process at a time; it is removed at the end, unless it was renamed."""
    partial = output.with_name(f".{output.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"{output} is being prepared by another command: wait until it ends") from None
    try:
        for leftover in partial.iterdir():  # of a process that was killed
            if leftover.name != _LOCK:
                leftover.unlink()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()


@dataclass
class _Writer:
    """Writes one data set into a folder."""

    source: ImageSource
    request: Source
    seed: int
    folder: Path
    advance: Callable[[], None]
    sides: set[int] = field(default_factory=set)

    def write(self, name: str) -> Manifest:
        """Shards of all splits, then the manifest."""
        # Pillow warns of odd metadata; what counts is whether the image decodes.
        with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
            warnings.simplefilter("ignore")
            splits = {split: self._write_split(split, pool) for split in SPLITS}
        written = Manifest(
            format_version=manifest.FORMAT_VERSION,
            name=name,
            classes=self.source.classes,
            splits=splits,
            encoding="jpeg",
            max_side=max(self.sides),
            min_side=min(self.sides),
            seed=self.seed,
            source=self.request,
            tools={package: importlib.metadata.version(package) for package in _TOOLS},
        )
        with (self.folder / manifest.FILE).open("w", encoding="utf-8") as file:
            file.write(written.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        _sync(self.folder)
        return written

    def _write_split(self, split: Split, pool: ThreadPoolExecutor) -> manifest.Split:
        labels = np.asarray(self.source.labels(split))
        order = np.random.default_rng((self.seed, SPLITS.index(split))).permutation(len(labels)).tolist()
        shard_samples = self.request.options["shard_samples"]
        images = _map_in_order(pool, lambda index: self._read(split, index), order, ahead=4 * (os.cpu_count() or 1))
        samples = (Sample(*image, int(labels[index])) for index, image in zip(order, images, strict=True))
        shards = []
        for number, start in enumerate(range(0, len(order), shard_samples)):
            path = self.folder / f"{split}-{number:05d}.beton"
            count = min(shard_samples, len(order) - start)
            write_shard(path, islice(samples, count), count)
            shards.append(_describe_shard(path, count))
        per_class = np.bincount(labels, minlength=len(self.source.classes)).tolist()
        return manifest.Split(samples=len(order), samples_per_class=per_class, shards=shards)

    def _read(self, split: Split, index: int) -> StoredImage:
        try:
            image = to_stored(self.source.read(split, index), self.request.options["max_side"])
        except DecodeError as error:
            name = self.source.describe(split, index)
            raise UserError(f"{name} cannot be decoded ({error}): mend or remove it, then prepare again") from None
        self.sides.update((image.height, image.width))
        self.advance()
        return image


def _map_in_order(
    pool: ThreadPoolExecutor, function: Callable[[Argument], Result], arguments: Iterable[Argument], ahead: int
) -> Iterator[Result]:
    """The results of `function`, in order, computed by a pool that runs at most `ahead` arguments ahead."""
    remaining = iter(arguments)
    pending: deque[Future[Result]] = deque(pool.submit(function, argument) for argument in islice(remaining, ahead))
    while pending:
        result = pending.popleft().result()
        pending.extend(pool.submit(function, argument) for argument in islice(remaining, 1))
        yield result


def _describe_shard(path: Path, samples: int) -> Shard:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(file=path.name, samples=samples, bytes=path.stat().st_size, sha256=digest)


def _sync(folder: Path) -> None:
    """Puts a folder's list of files on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
