"""The images of a split, by their numbers, across all files of the split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common.errors import UserError
from data_prep.format.beton import SampleInfo, Shard
from data_prep.format.manifest import Manifest, SplitName


class ImageLocation(NamedTuple):
    """The file of an image, and its number there."""

    path: Path
    sample: int
    """Number of the image in that file."""


@dataclass(frozen=True)
class LocatedImages:
    """Images that were located; arrays have one element for each."""

    entries: SampleInfo
    addresses: np.ndarray
    """(n,) uint64: addresses of their bytes in memory, valid while the :class:`ShardedImages` exist."""


class ShardedImages:
    """The images of one split of a prepared data set; the time to open them does not depend on their number.

    Raises:
        UserError: a file is missing, damaged, or has another number of images than in the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: SplitName) -> None:
        self.split = split
        self._classes = len(manifest.classes)
        self._shards: list[Shard] = []
        for entry in manifest.splits[split].files:
            shard = Shard(folder / entry.file)
            if shard.samples != entry.samples:
                raise UserError(f"shard {shard.path} has {shard.samples} images instead of {entry.samples}")
            self._shards.append(shard)
        self._starts = np.cumsum([0, *(shard.samples for shard in self._shards)])
        self._origins = [shard.content.ctypes.data for shard in self._shards]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def place(self, index: int) -> ImageLocation:
        """The file of an image, and its number there."""
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        return ImageLocation(self._shards[number].path, index - int(self._starts[number]))

    def locate(self, indices: np.ndarray) -> LocatedImages:
        """Locates images by their numbers (n,).

        Raises:
            UserError: the metadata of an image are damaged.
        """
        numbers = np.searchsorted(self._starts, indices, "right") - 1
        columns = [np.empty(len(indices), np.int64) for _ in SampleInfo._fields]
        addresses = np.empty(len(indices), np.uint64)
        for number in np.unique(numbers).tolist():
            rows = numbers == number
            found = self._shards[number].locate(indices[rows] - self._starts[number])
            for column, part in zip(columns, found, strict=True):
                column[rows] = part
            addresses[rows] = found.start.astype(np.uint64) + np.uint64(self._origins[number])
        entries = SampleInfo(*columns)
        wrong = (entries.label < 0) | (entries.label >= self._classes)
        if wrong.any():
            index = int(indices[np.argmax(wrong)])
            path, sample = self.place(index)
            raise UserError(
                f"{path} is damaged: sample {sample} has label {int(entries.label[np.argmax(wrong)])}, outside of the "
                f"{self._classes} classes; prepare the data set again"
            )
        return LocatedImages(entries, addresses)

    def prefetch(self, first: int, end: int) -> None:
        """Advises the system to read the images first … end−1 ahead from the disk."""
        for number, shard in enumerate(self._shards):
            low, high = max(first - int(self._starts[number]), 0), min(end - int(self._starts[number]), shard.samples)
            if low < high:
                shard.prefetch(low, high)
