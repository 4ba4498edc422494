"""Writes one shard, in a thread of this process or in a Ray task on any node.

The bytes of a shard depend on the index of the source and on the settings alone, not on where and when it is written.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from data_prep.codec.convert import StoredImage, keep_unchanged, to_jpeg, to_raw
from data_prep.codec.decode import DecodeError
from data_prep.common import storage
from data_prep.common.counter_rng import Purpose, key, uniform
from data_prep.common.errors import UserError
from data_prep.common.files import write_atomically
from data_prep.common.parallel import Advance
from data_prep.format.beton import RAW, Sample, write_shard
from data_prep.format.manifest import SPLITS, File, LeftOut, Part, SplitName
from data_prep.loading.shuffle import permute
from data_prep.prepare import workspace
from data_prep.prepare.spec import PrepareSpec
from data_prep.prepare.workspace import ShardRecord
from data_prep.sources.image_index import ImageIndex, pick

Argument = TypeVar("Argument")
Result = TypeVar("Result")

CHUNK = 8
"""Number of images that a thread converts in one call."""
AHEAD = 2
"""Number of chunks, for each thread, that are converted ahead of writing."""


class ShardPlan(NamedTuple):
    """The images `first` … `end` − 1 of a split's shuffled order."""

    split: SplitName
    number: int
    first: int
    end: int


class Probe(NamedTuple):
    """Measurements of a few images of a shard."""

    sizes: list[int]
    """Bytes of each image, as stored."""
    seconds: float


class SourceImage(NamedTuple):
    """An image of the source, before it is read."""

    row: int
    """In the table of its split."""
    label: int
    name: str
    file: str
    offset: int
    size: int
    raw: bool
    """Whether it is stored as pixels."""


def probe(index: ImageIndex, spec: PrepareSpec, shard: ShardPlan, count: int) -> Probe:
    """Converts `count` images of a shard, at least one, without writing them."""
    sizes: list[int] = []
    started = time.perf_counter()
    for chunk in _chunks(_images(index, spec, shard._replace(end=min(shard.first + max(1, count), shard.end)))):
        converted = convert(chunk, spec)
        sizes += [len(found.stored.content) for found in converted if isinstance(found.stored, StoredImage)]
    return Probe(sizes, time.perf_counter() - started)


@dataclass(frozen=True)
class WriteShard:
    """The task that writes a shard. It is idempotent: a shard that exists is replaced by the same bytes."""

    folder: Path
    """The work folder, which every node can access."""
    spec: PrepareSpec
    threads: int
    """Number of threads that read, decode and encode."""
    allowed: int = 0
    """Number of images that may be left out because they are damaged."""

    def __call__(self, shard: ShardPlan, advance: Advance) -> tuple[ShardPlan, ShardRecord]:
        """Writes the shard, and then its record.

        Raises:
            UserError: more images are damaged than `allowed`.
            OSError: the disk fails.
        """
        index = workspace.load_index(self.folder)
        path = self.folder / f"{shard.split}-{shard.number:05d}.beton"
        tally = _Tally(len(index.classes))
        with converted_images(index, self.spec, shard, self.threads) as found:
            samples = tally.count(found, advance, self.allowed)
            first = next(samples, None)
            written = first and write_shard(path, chain([first], samples), shard.end - shard.first)
        record = ShardRecord(
            file=written
            and File(file=path.name, samples=written.samples, bytes=written.file_bytes, sha256=written.file_sha256),
            part=written and Part(samples=written.samples, sha256=written.content_sha256),
            samples_per_class=tally.per_class.tolist(),
            content_bytes=written.content_bytes if written else 0,
            untouched=tally.counts["untouched"],
            raw=tally.counts["raw"],
            sides=(min(tally.sides, default=0), max(tally.sides, default=0)),
            left_out=tally.left_out,
            changed=tally.changed,
        )
        write_atomically(workspace.record_path(self.folder, shard.split, shard.number), record.model_dump_json())
        return shard, record


class _Tally:
    """Counts of the images that were stored in a shard or left out."""

    def __init__(self, classes: int) -> None:
        self.per_class = np.zeros(classes, np.int64)
        self.counts: Counter[str] = Counter()
        self.sides: set[int] = set()
        self.left_out: list[LeftOut] = []
        self.changed: dict[int, int] = {}

    def count(self, found: Iterable[Converted], advance: Advance, allowed: int) -> Iterator[Sample]:
        """Counts images, and yields those that can be stored."""
        for image, stored, size in found:
            advance(1)
            if size != image.size:
                self.changed[image.row] = size
            if isinstance(stored, LeftOut):
                self.left_out.append(stored)
                check_allowed(self.left_out, allowed)
                continue
            self.per_class[image.label] += 1
            self.counts["untouched"] += stored.untouched
            self.counts["raw"] += stored.mode == RAW
            self.sides.update((stored.height, stored.width))
            yield Sample(stored.content, stored.mode, stored.height, stored.width, image.label)


def check_allowed(left_out: list[LeftOut], allowed: int) -> None:
    """Checks the number of images that were left out because they are damaged.

    Raises:
        UserError: there are more than allowed.
    """
    if len(left_out) <= allowed:
        return
    named = "; ".join(f"{each.image} cannot be decoded ({each.reason})" for each in left_out[:3])
    if not allowed:
        raise UserError(
            f"{named}: repair it and rerun the same command, which keeps what is written, or leave such images out "
            "with --allow-damaged; --check lists all of them"
        )
    raise UserError(
        f"more than the allowed {allowed} images are damaged, among them {named}: repair them and rerun the same "
        "command, which keeps what is written, or raise --allow-damaged; --check lists all of them"
    )


@contextmanager
def converted_images(
    index: ImageIndex, spec: PrepareSpec, shard: ShardPlan, threads: int
) -> Iterator[Iterator[Converted]]:
    """Yields the images of a shard, in its order, converted by threads that end with the body."""
    with ThreadPoolExecutor(threads, "prepare") as pool:
        chunks = _chunks(_images(index, spec, shard))
        try:
            yield chain.from_iterable(
                _map_in_order(pool, functools.partial(convert, spec=spec), chunks, AHEAD * threads)
            )
        finally:
            pool.shutdown(cancel_futures=True)


def _images(index: ImageIndex, spec: PrepareSpec, shard: ShardPlan) -> Iterator[SourceImage]:
    """The images of a shard, in its order."""
    split = SPLITS.index(shard.split)
    table = index.splits[shard.split]
    places = np.arange(shard.first, shard.end)
    rows = permute(places, table.num_rows, key(spec.seed, split, Purpose.ORDER))
    raw = np.full(len(places), spec.encoding == "raw")
    if spec.encoding == "mixed":
        raw = uniform(1, spec.seed, split, Purpose.ENCODING, places)[:, 0] < spec.raw_share
    taken = pick(table, rows)
    columns = [taken[name].to_pylist() for name in ("label", "name", "file", "offset", "size")]
    for values in zip(rows.tolist(), *columns, raw.tolist(), strict=True):
        yield SourceImage(*values)


class Converted(NamedTuple):
    """An image of the source, converted."""

    image: SourceImage
    stored: StoredImage | LeftOut
    size: int
    """Of its file now: one that was repaired since it was listed has another size."""


def convert(images: list[SourceImage], spec: PrepareSpec) -> list[Converted]:
    """Reads images and converts them to their stored form. Runs in threads.

    Raises:
        UserError: storage does not answer.
    """
    contents = [_read(image) for image in images]
    jpegs = [
        content if isinstance(content, bytes) and not image.raw else b""
        for image, content in zip(images, contents, strict=True)
    ]
    kept = keep_unchanged(jpegs, spec.max_side)
    return [
        Converted(image, content, image.size)
        if isinstance(content, LeftOut)
        else Converted(image, stored or _convert_one(content, image.raw, image.name, spec), len(content))
        for image, content, stored in zip(images, contents, kept, strict=True)
    ]


def _read(image: SourceImage) -> bytes | LeftOut:
    """The bytes of an image. Of a file of its own, those that it has now, as it may have been repaired."""
    own_file = image.offset == 0 and Path(image.file).name == Path(image.name).name
    if not own_file or storage.is_remote(image.file):
        return storage.read_range(image.file, image.offset, image.size)
    try:
        return Path(image.file).read_bytes()
    except OSError as error:  # without the right to read it, or gone
        return LeftOut(image=image.name, reason=f"cannot be read: {error.strerror}")


def _convert_one(content: bytes, raw: bool, name: str, spec: PrepareSpec) -> StoredImage | LeftOut:
    try:
        return to_raw(content, spec.max_side) if raw else to_jpeg(content, spec.max_side, spec.quality)
    except DecodeError as error:
        return LeftOut(image=name, reason=str(error))
    except MemoryError:  # no damage
        raise UserError(f"memory is too small to decode {name}: lower --workers, then rerun the same command") from None


def _chunks(images: Iterator[SourceImage]) -> Iterator[list[SourceImage]]:
    while chunk := list(islice(images, CHUNK)):
        yield chunk


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
