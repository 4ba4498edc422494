"""Batches of images out of a prepared data set: decoded by plain threads, ahead of the training step.

Every random choice has a name, and is a function of it alone: the order of (seed, epoch), crop and mirroring of
(seed, epoch, image), membership of the holdout of (seed, image). Ranks, threads and interruptions change nothing.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_prep import manifest
from data_prep.beton import OpenShard, open_shard
from data_prep.decoding import DecodeError, decode, resize_crop
from data_prep.errors import UserError
from data_prep.manifest import ImageClass, Manifest
from pipeline.config import DataSettings

Subset = Literal["train", "validation", "holdout"]

BATCHES_AHEAD = 3
"""Batches that are being decoded while one is in use."""
CHUNK = 16
"""Images that a thread decodes in one go: few enough that leaving an epoch early waits for milliseconds."""
CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch; b may differ by one between ranks (and be 0 with fewer images than ranks)."""

    images: Tensor
    """(b, H, W, 3) uint8, red green blue."""
    labels: Tensor
    """(b,) int64."""
    indices: Tensor
    """(b,) int64: the images' numbers in their split, as stored."""
    size: int
    """Images in the global batch, over all ranks."""


class Crop(NamedTuple):
    """A rectangle of an image, in pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


class ImageStream:
    """The images of a subset, epoch by epoch, as one rank sees them.

    Training epochs are shuffled and augmented; epochs of the validation split and of the holdout go through every image
    once, in the order of the shards, cropped to the center.

    Args:
        folder: of a prepared data set.
        subset: `holdout` is a part of the training images, which `train` leaves out if `data.evaluate_on` says so.
        batch_size: images in a global batch, over all ranks.

    Raises:
        UserError: the data set is missing or damaged, or does not fit the settings.
    """

    def __init__(
        self,
        folder: Path,
        data: DataSettings,
        subset: Subset,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        described = manifest.load(folder)
        _check_fit(folder, described, data, subset)
        self._data = data
        self._training = subset == "train"
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._pin_memory = pin_memory
        self._images = _StoredImages(folder, described, "validation" if subset == "validation" else "train")
        self._members = _members(subset, len(self._images.labels), data, seed)
        self.samples = len(self._members)
        self.classes: list[ImageClass] = described.classes
        if self.samples == 0:
            raise UserError(f"data.holdout is {data.holdout}, which leaves no image in the {subset} part of {folder}")

    def steps(self) -> int:
        """Global batches in an epoch."""
        return len(batch_bounds(self.samples, self._batch_size)) - 1

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch. Its threads end with the iterator, finished or not.

        Raises:
            UserError: an image cannot be decoded; names its shard and number, and why.
        """
        # Threads of its own for each epoch; each leaves about 11 KB behind, as FFCV's library never frees a decoder.
        pool = ThreadPoolExecutor(self._data.decode_threads, "decode")
        under_way: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for indices, size in self._parts(epoch):
                under_way.append(self._start(pool, epoch, indices, size))
                if len(under_way) > BATCHES_AHEAD:
                    yield _finish(*under_way.popleft())
            while under_way:
                yield _finish(*under_way.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _parts(self, epoch: int) -> Iterator[tuple[np.ndarray, int]]:
        """The image numbers of this rank in each global batch, and that batch's size."""
        order = self._members
        if self._training:
            order = _random(self._seed, epoch, _Purpose.ORDER).permutation(order)
        bounds = batch_bounds(self.samples, self._batch_size)
        for start, end in pairwise(bounds):
            size = end - start
            first, last = (start + size * rank // self._world_size for rank in (self._rank, self._rank + 1))
            yield order[first:last], size

    def _start(
        self, pool: ThreadPoolExecutor, epoch: int, indices: np.ndarray, size: int
    ) -> tuple[Batch, list[Future[None]]]:
        """A batch whose pixels the pool is about to fill in."""
        side = self._data.image_size
        images = torch.empty((len(indices), side, side, 3), dtype=torch.uint8, pin_memory=self._pin_memory)
        batch = Batch(images, torch.tensor(self._images.labels[indices]), torch.tensor(indices), size)
        pixels = images.numpy()
        chunks = [slice(start, start + CHUNK) for start in range(0, len(indices), CHUNK)]
        return batch, [pool.submit(self._fill, epoch, indices[rows], pixels[rows]) for rows in chunks]

    def _fill(self, epoch: int, indices: np.ndarray, pixels: np.ndarray) -> None:
        """Decodes images into `pixels`, (len(indices), H, W, 3) uint8. Runs in a thread."""
        for index, out in zip(indices.tolist(), pixels, strict=True):
            image = self._images.decode(index)
            height, width, _ = image.shape
            if self._training:
                crop = augment(height, width, self._data, _random(self._seed, epoch, _Purpose.AUGMENTATION, index))
            else:
                crop = center_crop(height, width, self._data.center_crop)
            resize_crop(image, crop.top, crop.left, crop.height, crop.width, out)
            if crop.mirrored:
                out[:] = out[:, ::-1].copy()


def batch_bounds(samples: int, batch_size: int) -> list[int]:
    """Where the batches of an epoch begin and, last, where it ends.

    Batches are full but for the last one. If that would be smaller than half a batch, the last two share their images
    evenly: statistics over a handful of images are worth little.
    """
    bounds = [*range(0, samples, batch_size), samples]
    ragged = bounds[-1] - bounds[-2]
    if len(bounds) > 2 and 2 * ragged < batch_size:
        bounds[-2] = (bounds[-3] + samples + 1) // 2
    return bounds


def augment(height: int, width: int, data: DataSettings, random: np.random.Generator) -> Crop:
    """The crop and mirroring that training applies to an image of this size."""
    mirrored, *numbers = random.random(1 + 4 * CROP_ATTEMPTS).tolist()
    if data.random_crop:
        crop = random_crop(height, width, data.crop_scale, data.crop_ratio, numbers)
    else:
        crop = center_crop(height, width, data.center_crop)
    return crop._replace(mirrored=data.flip and mirrored < 0.5)


def random_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], numbers: list[float]
) -> Crop:
    """A rectangle of random area, aspect ratio and place.

    The area is uniform in `scale` (as a fraction of the image's), the logarithm of the aspect ratio (width / height)
    uniform in that of `ratio`, as far as such a rectangle fits into the image; after ten that do not, the largest
    central one of an allowed ratio.

    Args:
        numbers: 40 uniform ones in [0, 1), from which everything follows.
    """
    smallest, largest = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(0, 4 * CROP_ATTEMPTS, 4):
        for_area, for_ratio, for_top, for_left = numbers[attempt : attempt + 4]
        area = height * width * (scale[0] + (scale[1] - scale[0]) * for_area)
        aspect = math.exp(smallest + (largest - smallest) * for_ratio)
        crop_height, crop_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = int(for_top * (height - crop_height + 1)), int(for_left * (width - crop_width + 1))
            return Crop(top, left, crop_height, crop_width, False)
    crop_height = max(1, min(height, round(width / ratio[0])))
    crop_width = max(1, min(width, round(height * ratio[1])))
    return Crop((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width, False)


def center_crop(height: int, width: int, fraction: float) -> Crop:
    """The central square whose side is this fraction of the image's shorter side."""
    side = max(1, round(fraction * min(height, width)))
    return Crop((height - side) // 2, (width - side) // 2, side, side, False)


class _Purpose(IntEnum):
    """What random numbers are for: each purpose has its own."""

    ORDER = 0
    AUGMENTATION = 1
    HOLDOUT = 2


def _random(seed: int, epoch: int, purpose: _Purpose, image: int = 0) -> np.random.Generator:
    """Random numbers of their own for each combination of arguments: counter-based, hence cheap to make."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, epoch], counter=[0, 0, purpose, image]))


def _members(subset: Subset, samples: int, data: DataSettings, seed: int) -> np.ndarray:
    """(members,) int64: the numbers of the images of a subset among the `samples` of their split, ascending."""
    everything = np.arange(samples, dtype=np.int64)
    if subset == "validation" or (subset == "train" and data.evaluate_on == "validation"):
        return everything
    held_out = _random(seed, 0, _Purpose.HOLDOUT).random(samples) < data.holdout
    return everything[held_out if subset == "holdout" else ~held_out]


def _finish(batch: Batch, under_way: list[Future[None]]) -> Batch:
    for future in under_way:
        future.result()
    return batch


def _check_fit(folder: Path, described: Manifest, data: DataSettings, subset: Subset) -> None:
    if data.classes is not None and data.classes != len(described.classes):
        raise UserError(f"data.classes is {data.classes}, but {folder} has {len(described.classes)} classes")
    if data.image_size > described.max_side:
        raise UserError(
            f"data.image_size is {data.image_size}, but no side of an image of {folder} is longer than "
            f"{described.max_side} pixels: make it smaller, or prepare larger images"
        )
    if subset == "train" and data.flip and described.source.kind == "textures":
        raise UserError(f"data.flip must be false for {folder}: mirroring a texture changes its class")


class _StoredImages:
    """The images of a split, in its shards."""

    def __init__(self, folder: Path, described: Manifest, split: Literal["train", "validation"]) -> None:
        self._split = split
        self._shards: list[OpenShard] = []
        for entry in described.splits[split].shards:
            shard = open_shard(folder / entry.file)
            if len(shard.index) != entry.samples:
                raise UserError(f"shard {shard.path} has {len(shard.index)} images instead of {entry.samples}")
            self._shards.append(shard)
        self._starts = np.cumsum([0, *(len(shard.index) for shard in self._shards)])
        self.labels = np.concatenate([shard.index["label"] for shard in self._shards]).astype(np.int64)
        """(samples,) int64."""
        if self.labels.min() < 0 or self.labels.max() >= len(described.classes):
            raise UserError(f"{folder} has labels outside of its {len(described.classes)} classes: prepare it again")
        self._scratch = threading.local()

    def decode(self, index: int) -> np.ndarray:
        """An image, (H, W, 3) uint8, which the same thread's next call overwrites.

        Raises:
            UserError: it cannot be decoded.
        """
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        shard, sample = self._shards[number], int(index - self._starts[number])
        height, width = int(shard.index["height"][sample]), int(shard.index["width"][sample])
        pixels = self._room(3 * height * width).reshape(height, width, 3)
        try:
            decode(shard.jpeg(sample), height, width, pixels)
        except DecodeError as error:
            raise UserError(
                f"{shard.path}: sample {sample} (image {index} of the {self._split} split) cannot be decoded: {error}; "
                "prepare the data set again"
            ) from None
        return pixels

    def _room(self, size: int) -> np.ndarray:
        """(size,) uint8 of this thread's own memory, which grows to its largest image's."""
        buffer: np.ndarray | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.size < size:
            buffer = self._scratch.buffer = np.empty(size, np.uint8)
        return buffer[:size]
