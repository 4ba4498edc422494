"""Batches of images out of a prepared data set: decoded by plain threads, ahead of whoever uses them.

Order and augmentation are functions of (seed, epoch, sample) alone: the same stream of global batches whatever the
number of threads, workers or nodes, and from any position in an epoch on. Nothing is compiled, forked or left behind.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.codec.decode import JOB, DecodeIssue, decode_batch
from data_prep.common.errors import UserError
from data_prep.format.manifest import ImageClass, Manifest, SplitName, load_manifest
from data_prep.loading.buffers import ReusedBuffers
from data_prep.loading.dataset import ShardedImages
from data_prep.loading.prefetcher import Prefetcher
from data_prep.loading.shuffle import BlockShuffle, FullShuffle, Order, Sequential
from data_prep.loading.transforms import Augmentation, CenterCrop, Draws, augment_pixels, choose_crops

BATCHES_AHEAD = 3
"""Batches that are being decoded while one is in use."""
CHUNK = 16
"""Images that a thread decodes in one go: few enough that leaving an epoch early waits for milliseconds."""

Shuffle = Literal["none", "full", "blocks"]
OnDamage = Literal["stop", "skip"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch; b may differ by one between ranks (and be 0 with fewer images than ranks)."""

    images: np.ndarray
    """(b, size, size, 3) uint8, red green blue."""
    labels: np.ndarray
    """(b,) int64."""
    indices: np.ndarray
    """(b,) int64: the images' numbers in their split, as stored."""
    size: int
    """Images in the global batch, over all ranks, damaged ones included."""
    end: int
    """Position in the epoch behind this global batch: where to start again after it."""
    skipped: int
    """Damaged images that this rank left out of its part."""


@dataclass(frozen=True)
class Blocks:
    """How data larger than memory are shuffled, see :class:`data_prep.loading.shuffle.BlockShuffle`."""

    block: int = 64
    """Images that lie behind each other and are read together."""
    window: int = 1024
    """Images of a lane that are mixed with each other: as many as memory should hold, for each lane of a node."""
    lanes: int = 32
    """Independent streams, dealt to the workers: best a multiple of their number."""


class Loader:
    """The images of a split, epoch by epoch, as one of several ranks sees them.

    Args:
        folder: of a prepared data set.
        split: train or validation.
        batch_size: images in a global batch, over all ranks.
        size: height and width of the images of a batch, in pixels.
        augmentations: what is done to each image, in order; by default its central square is cut out.
        shuffle: none, all images (full), or blocks of them, for data larger than memory.
        seed: of order and augmentation.
        rank, world_size: this worker among all: it gets every `world_size`-th image of each global batch.
        threads: that decode.
        subset_indices: (m,) int64, ascending: the images of the split to load; by default all.
        on_damage: an image that cannot be decoded ends the epoch, or is left out of its batch and counted.
        reduce: decode JPEGs at 1/2, 1/4 or 1/8 of their size where the crop stays at least as large as `size`.
        allocate: makes room for a batch, such as in pinned memory, given its shape; by default memory is used again.

    Raises:
        UserError: the data set is missing or damaged.
    """

    def __init__(
        self,
        folder: str | Path,
        split: SplitName = "train",
        *,
        batch_size: int,
        size: int,
        augmentations: Sequence[Augmentation] = (CenterCrop(),),
        shuffle: Shuffle = "none",
        blocks: Blocks | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        subset_indices: np.ndarray | None = None,
        on_damage: OnDamage = "stop",
        reduce: bool = True,
        allocate: Callable[[tuple[int, ...]], np.ndarray] | None = None,
        manifest: Manifest | None = None,
    ) -> None:
        folder = Path(folder)
        manifest = manifest or load_manifest(folder)
        self.classes: list[ImageClass] = manifest.classes
        self._images = ShardedImages(folder, manifest, split)
        self._subset_indices = subset_indices
        self.samples = len(self._images) if subset_indices is None else len(subset_indices)
        self._batch_size, self._size = batch_size, size
        self._augmentations = tuple(augmentations)
        self._shuffle, self._blocks = shuffle, blocks or Blocks()
        self._seed, self._rank, self._world_size, self._threads = seed, rank, world_size, threads
        self._on_damage, self._reduce = on_damage, reduce
        self._allocate = allocate or ReusedBuffers()

    def steps(self) -> int:
        """Global batches in an epoch."""
        return len(batch_bounds(self.samples, self._batch_size)) - 1

    def order(self, epoch: int) -> Order:
        """The arrangement of the samples in an epoch."""
        if self._shuffle == "full":
            return FullShuffle(self.samples, self._seed, epoch)
        if self._shuffle == "blocks":
            sizes = self._blocks
            return BlockShuffle(self.samples, self._seed, epoch, sizes.block, sizes.window, sizes.lanes)
        return Sequential()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch. Its threads end with the iterator, finished or not.

        Args:
            start: position in the epoch to begin at, :attr:`Batch.end` of the last batch that was used; with any number
                of ranks, the batches from there on are those that would have followed.

        Raises:
            UserError: an image cannot be decoded; names its file, number and what is wrong.
        """
        pool = ThreadPoolExecutor(self._threads, "decode")
        in_flight: deque[_Pending] = deque()
        prefetcher = Prefetcher(self._images, self.order(epoch), self._subset_indices, self._world_size, self._rank)
        try:
            for first, end in pairwise(batch_bounds(self.samples, self._batch_size, start)):
                prefetcher.at(first)
                in_flight.append(self._start(pool, epoch, first, end))
                if len(in_flight) > BATCHES_AHEAD:
                    yield self._finish(in_flight.popleft())
            while in_flight:
                yield self._finish(in_flight.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, epoch: int, first: int, end: int) -> _Pending:
        """A batch whose pixels the pool is about to fill in."""
        own = first + (self._rank - first) % self._world_size
        positions = np.arange(own, end, self._world_size)
        indices = self.order(epoch).at(positions)
        if self._subset_indices is not None:
            indices = self._subset_indices[indices]
        images = self._allocate((len(indices), self._size, self._size, 3))
        labels = np.empty(len(indices), np.int64)
        chunks = [slice(at, min(at + CHUNK, len(indices))) for at in range(0, len(indices), CHUNK)]
        batch = Batch(images, labels, indices, end - first, end, 0)
        return _Pending(batch, [(rows, pool.submit(self._fill, epoch, batch, rows)) for rows in chunks])

    def _fill(self, epoch: int, batch: Batch, rows: slice) -> list[DecodeIssue]:
        """Decodes a part of a batch. Runs in a thread."""
        indices = batch.indices[rows]
        found = self._images.locate(indices)
        entries = found.entries
        draws = Draws(self._seed, epoch, indices)
        crops = choose_crops(self._augmentations, entries.height, entries.width, draws)
        jobs = np.empty(len(indices), JOB)
        jobs["address"], jobs["size"] = found.addresses, entries.size
        jobs["mode"], jobs["height"], jobs["width"] = entries.mode, entries.height, entries.width
        jobs["top"], jobs["left"], jobs["crop_height"], jobs["crop_width"], jobs["mirrored"] = crops
        batch.labels[rows] = entries.label
        issues = decode_batch(jobs, batch.images[rows], self._reduce)
        augment_pixels(self._augmentations, batch.images[rows], draws)
        return issues

    def _finish(self, pending: _Pending) -> Batch:
        batch, damaged = pending.batch, []
        for rows, future in pending.chunks:
            for issue in future.result():
                if self._on_damage == "stop":
                    raise UserError(self._describe(int(batch.indices[rows.start + issue.row]), issue))
                damaged.append(rows.start + issue.row)
        if not damaged:
            return batch
        whole = np.delete(np.arange(len(batch.labels)), damaged)
        images = self._allocate((len(whole), *batch.images.shape[1:]))
        np.take(batch.images, whole, axis=0, out=images)
        return Batch(images, batch.labels[whole], batch.indices[whole], batch.size, batch.end, len(damaged))

    def _describe(self, index: int, issue: DecodeIssue) -> str:
        path, sample = self._images.place(index)
        return (
            f"{path}: sample {sample} (image {index} of the {self._images.split} split) cannot be decoded: "
            f"{issue.message}; 'phasecollapse verify' finds all damage, and data.on_damage=skip goes on without"
        )


def batch_bounds(samples: int, batch_size: int, start: int = 0) -> list[int]:
    """Where the batches of an epoch begin, from position `start` on, and, last, where it ends.

    Batches are full but for the last one. If that would be smaller than half a batch, the last two share their images
    evenly: statistics over a handful of images are worth little.
    """
    bounds = [*range(start, samples, batch_size), samples]
    if len(bounds) > 2 and 2 * (bounds[-1] - bounds[-2]) < batch_size:
        bounds[-2] = (bounds[-3] + samples + 1) // 2
    return bounds


@dataclass(frozen=True)
class _Pending:
    """A batch, and the work that fills it in."""

    batch: Batch
    chunks: list[tuple[slice, Future[list[DecodeIssue]]]]
