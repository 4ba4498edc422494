"""The images of a subset as a stream of batches of tensors, as the settings of a run describe them.

Decoding, order and augmentation are :mod:`data_prep.loading.loader`'s; here settings are checked against the data set,
and arrays become tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_prep.common.counter_rng import Purpose, uniform
from data_prep.common.errors import UserError, count_of
from data_prep.format.manifest import ImageClass, Manifest, load_manifest
from data_prep.loading.ffcv_reader import FfcvLoader
from data_prep.loading.loader import Batch as ArrayBatch
from data_prep.loading.loader import Blocks, Loader
from data_prep.loading.transforms import AUGMENTATIONS, Augmentation, CenterCrop, Flip, RandomCrop
from pipeline.config.schema import DataSettings

Subset = Literal["train", "validation", "holdout"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch; b may differ by one between ranks (and be 0 with fewer images than ranks)."""

    images: Tensor
    """(b, H, W, 3) uint8, red green blue."""
    labels: Tensor
    """(b,) int64."""
    indices: Tensor
    """(b,) int64: indices of the images in their split, as stored."""
    size: int
    """Images in the global batch, over all ranks; damaged ones that were skipped count."""
    end: int = 0
    """Position in the epoch after this global batch, from which an epoch can be resumed."""
    skipped: int = 0
    """Damaged images that this rank left out."""


class ImageStream:
    """The images of a subset, epoch by epoch, as one rank sees them.

    Training epochs are shuffled and augmented. Epochs of the validation split and of the holdout yield every image
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
        manifest = load_manifest(folder)
        _check_fit(folder, manifest, data, subset)
        split: Literal["train", "validation"] = "validation" if subset == "validation" else "train"
        subset_indices = _subset_indices(subset, manifest.splits[split].samples, data, seed)
        if subset_indices is not None and len(subset_indices) == 0:
            raise UserError(f"data.holdout is {data.holdout}, which leaves no image in the {subset} part of {folder}")
        self._loader: Loader | FfcvLoader
        common: dict[str, Any] = {
            "batch_size": batch_size,
            "size": data.image_size,
            "seed": seed,
            "rank": rank,
            "world_size": world_size,
            "threads": data.decode_threads or 1,
            "subset_indices": subset_indices,
        }
        if data.reader == "ffcv" and subset == "train":
            self._loader = FfcvLoader(
                folder,
                manifest.splits[split],
                crop=(data.crop_scale, data.crop_ratio) if data.random_crop else None,
                center_crop=data.center_crop,
                flip=data.flip,
                **common,
            )
        else:
            self._loader = Loader(
                folder,
                split,
                augmentations=_augmentations(data) if subset == "train" else [CenterCrop(data.center_crop)],
                shuffle=data.shuffle if subset == "train" else "none",
                blocks=Blocks(lanes=data.shuffle_lanes),
                on_damage=data.on_damage,
                allocate=_pinned if pin_memory else None,
                manifest=manifest,
                **common,
            )
        self.samples = self._loader.samples
        self.classes: list[ImageClass] = manifest.classes

    def steps(self) -> int:
        """Global batches in an epoch."""
        return self._loader.steps()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch. Its decoding threads end with the iterator.

        Args:
            start: position in the epoch to begin at: :attr:`Batch.end` of the last batch that was used.

        Raises:
            UserError: an image cannot be decoded; names its shard and number, and why.
        """
        batches = self._loader.epoch(epoch, start)
        try:
            yield from map(to_tensors, batches)
        finally:
            batches.close()  # type: ignore[attr-defined]


def to_tensors(batch: ArrayBatch) -> Batch:
    """The same batch as tensors, which share its memory."""
    images, labels, indices = (torch.from_numpy(part) for part in (batch.images, batch.labels, batch.indices))
    return Batch(images, labels, indices, batch.size, batch.end, batch.skipped)


def count_images(data: DataSettings, manifest: Manifest, seed: int) -> tuple[int, int]:
    """Numbers of images that an epoch trains on and evaluates."""
    subsets: tuple[Subset, ...] = ("train", data.evaluate_on)
    counts = []
    for subset in subsets:
        samples = manifest.splits["validation" if subset == "validation" else "train"].samples
        subset_indices = _subset_indices(subset, samples, data, seed)
        counts.append(samples if subset_indices is None else len(subset_indices))
    return counts[0], counts[1]


def _augmentations(data: DataSettings) -> list[Augmentation]:
    """The augmentations of training images, in order."""
    crop = RandomCrop(data.crop_scale, data.crop_ratio) if data.random_crop else CenterCrop(data.center_crop)
    return [crop, *([Flip()] if data.flip else []), *map(AUGMENTATIONS.find, data.augmentations)]


def _pinned(shape: tuple[int, ...]) -> np.ndarray:
    """Pinned memory, from which copies to a GPU are asynchronous; torch's allocator keeps it until a copy is done."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def _subset_indices(subset: Subset, samples: int, data: DataSettings, seed: int) -> np.ndarray | None:
    """(members,) int64: the images of a subset among the `samples` of their split, ascending; None if it is all."""
    if subset == "validation" or (subset == "train" and data.evaluate_on == "validation"):
        return None
    everything = np.arange(samples, dtype=np.int64)
    held_out = uniform(1, seed, Purpose.HOLDOUT, everything)[:, 0] < data.holdout
    return everything[held_out if subset == "holdout" else ~held_out]


def _check_fit(folder: Path, manifest: Manifest, data: DataSettings, subset: Subset) -> None:
    if data.classes is not None and data.classes != len(manifest.classes):
        raise UserError(f"data.classes is {data.classes}, but {folder} has {count_of(len(manifest.classes), 'class')}")
    if data.image_size > manifest.max_side:
        raise UserError(
            f"data.image_size is {data.image_size}, but no side of an image of {folder} is longer than "
            f"{manifest.max_side} pixels: make it smaller, or prepare larger images"
        )
    if subset == "train" and data.flip and manifest.source.kind == "textures":
        raise UserError(f"data.flip must be false for {folder}: mirroring a texture changes its class")
