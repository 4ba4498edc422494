"""Data loader: batches of a prepared data set, decoded in threads ahead of their use.

Order and augmentation are functions of (seed, epoch, sample) alone: the stream of global batches is the same for any
number of threads, ranks and nodes, and when an epoch is resumed in its middle. The loader compiles nothing, starts no
processes, and ends its threads with the epoch.
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
"""Number of batches that are decoded ahead while one is in use."""
CHUNK = 16
"""Number of images that a thread decodes in one call; leaving an epoch early waits for such a call."""

Shuffle = Literal["none", "full", "blocks"]
OnDamage = Literal["stop", "skip"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch; b may differ by one between ranks, and is 0 where ranks outnumber images."""

    images: np.ndarray
    """(b, size, size, 3) uint8, red green blue."""
    labels: np.ndarray
    """(b,) int64."""
    indices: np.ndarray
    """(b,) int64: numbers of the images in their split."""
    size: int
    """Number of images in the global batch, over all ranks, including damaged ones."""
    end: int
    """Position in the epoch after this global batch, from which an epoch can be resumed."""
    skipped: int
    """Number of damaged images that this rank left out of its part."""


@dataclass(frozen=True)
class Blocks:
    """Sizes of the shuffle for data larger than memory, see :class:`data_prep.loading.shuffle.BlockShuffle`."""

    block: int = 64
    """Number of consecutive images that are read together."""
    window: int = 1024
    """Number of images of a lane that are shuffled together; a node holds a window for each of its lanes in memory."""
    lanes: int = 32
    """Number of independent streams, divided among the workers; best a multiple of their number."""


class Loader:
    """The batches of a split, epoch by epoch, of one of several ranks.

    Args:
        folder: of a prepared data set.
        split: train or validation.
        batch_size: number of images in a global batch, over all ranks.
        size: height and width of the images of a batch, in pixels.
        augmentations: what is done to each image, in order; by default its central square is cut out.
        shuffle: none; full, over all images; or blocks, for data larger than memory.
        blocks: sizes of the shuffle `blocks`.
        seed: seed of order and augmentation.
        rank, world_size: this rank among all; it loads every `world_size`-th image of each global batch.
        threads: number of threads that decode.
        subset_indices: (m,) int64, ascending: the images of the split to load; by default all.
        on_damage: at an image that cannot be decoded, stop the epoch, or skip the image and count it.
        reduce: decode JPEGs at 1/2, 1/4 or 1/8 of their size where the crop stays at least as large as `size`.
        allocate: allocates the pixels of a batch of a given shape, such as in pinned memory; by default the memory of
            earlier batches is reused.
        manifest: of the data set; by default it is read from `folder`.

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
        """Number of global batches in an epoch."""
        return len(batch_bounds(self.samples, self._batch_size)) - 1

    def order(self, epoch: int) -> Order:
        """The order of the samples in an epoch."""
        if self._shuffle == "full":
            return FullShuffle(self.samples, self._seed, epoch)
        if self._shuffle == "blocks":
            sizes = self._blocks
            return BlockShuffle(self.samples, self._seed, epoch, sizes.block, sizes.window, sizes.lanes)
        return Sequential()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch; its threads end when the iterator is closed.

        Args:
            start: position in the epoch to begin at: :attr:`Batch.end` of the last batch that was used. The batches are
                those that would have followed, for any number of ranks.

        Raises:
            UserError: an image cannot be decoded; names its file, its number and the reason.
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
        """A batch whose pixels the pool decodes."""
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
            f"{issue.message}; 'phasecollapse verify' lists all damaged images, data.on_damage=skip leaves them out"
        )


def batch_bounds(samples: int, batch_size: int, start: int = 0) -> list[int]:
    """Positions at which the batches of an epoch begin, from `start` on, and its end as the last one.

    All batches are full except the last one. If that would be smaller than half a batch, the last two share their
    images evenly: batch statistics of few images are noisy.
    """
    bounds = [*range(start, samples, batch_size), samples]
    if len(bounds) > 2 and 2 * (bounds[-1] - bounds[-2]) < batch_size:
        bounds[-2] = (bounds[-3] + samples + 1) // 2
    return bounds


@dataclass(frozen=True)
class _Pending:
    """A batch, and the tasks that decode its pixels."""

    batch: Batch
    chunks: list[tuple[slice, Future[list[DecodeIssue]]]]
