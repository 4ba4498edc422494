"""Stock FFCV as the reader of a prepared data set: the only module that imports the package ffcv.

FFCV does not promise what this package's own loader does: it ignores what libjpeg reports of damaged images, and its
augmentation is not seeded, so that an epoch cannot be repeated. It is here to compare with, and for those who know it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.errors import UserError
from data_prep.format.beton import RAW
from data_prep.format.manifest import Split
from data_prep.loading.loader import Batch

REMEDY = "install it: pip install 'phasecollapse[ffcv]'"


class FfcvSample(NamedTuple):
    """A sample as stock FFCV reads it."""

    pixels: np.ndarray
    """(H, W, 3) uint8; zeros where FFCV decodes nothing."""
    label: int


class FfcvFile:
    """The samples of one FFCV file, opened with FFCV's own reader and decoded by its own library, without resizing.

    Raises:
        UserError: the package ffcv is not installed, or refuses the file.
    """

    def __init__(self, path: Path) -> None:
        import_ffcv()
        from ffcv.libffcv import imdecode
        from ffcv.reader import Reader

        try:
            self._reader = Reader(str(path))
        except (AssertionError, ValueError, OSError) as error:
            raise UserError(f"{path} cannot be read by stock FFCV ({error}): run 'phasecollapse verify'") from None
        self._imdecode = imdecode
        self._content = np.memmap(path, np.uint8, "r")
        self._sizes = {int(row["ptr"]): int(row["size"]) for row in self._reader.alloc_table}

    def __len__(self) -> int:
        return int(self._reader.num_samples)

    def __getitem__(self, sample: int) -> FfcvSample:
        image, label = self._reader.metadata[sample]
        height, width, pointer = int(image["height"]), int(image["width"]), int(image["data_ptr"])
        content = np.ascontiguousarray(self._content[pointer : pointer + self._sizes[pointer]])
        pixels = np.zeros((height, width, 3), np.uint8)
        if int(image["mode"]) == RAW:
            pixels = content.reshape(height, width, 3)
        else:
            self._imdecode(content, pixels, height, width, height, width, 0, 0, 1, 1, False, False)
        return FfcvSample(pixels, int(label))


class FfcvLoader:
    """Training batches of a split by FFCV's own loader, with the interface of :class:`data_prep.loading.loader.Loader`.

    Every rank gets the same number of full batches; the images that are left over in an epoch are dropped. An epoch
    that is resumed in its middle passes over the batches before it; its augmentation differs from the first time.

    Args:
        folder: of the data set.
        split: its entry in the manifest.
        batch_size: images in a global batch, over all ranks.
        size: height and width of the images of a batch, in pixels.
        crop: scale and ratio of random resized crops; None for the central square.
        center_crop: side of the central square, as a fraction of the shorter side.
        flip: mirror half of the images.
        subset_indices: (m,) int64, images of the split to load; by default all.

    Raises:
        UserError: ffcv is not installed, the split is not one file, or it has no full batch.
    """

    def __init__(
        self,
        folder: Path,
        split: Split,
        *,
        batch_size: int,
        size: int,
        crop: tuple[tuple[float, float], tuple[float, float]] | None,
        center_crop: float,
        flip: bool,
        seed: int,
        rank: int,
        world_size: int,
        threads: int,
        subset_indices: np.ndarray | None = None,
    ) -> None:
        check_split(folder, split)
        self.samples = split.samples if subset_indices is None else len(subset_indices)
        self._batch_size, self._world_size = -(-batch_size // world_size), world_size
        if self.steps() == 0:
            raise UserError(
                f"data.reader is ffcv, which drops incomplete batches, and {folder} has {self.samples} training "
                f"images, not one full batch of {batch_size}: lower training.batch_size, or set data.reader to native"
            )
        self._loader = self._build(
            folder / split.files[0].file, size, crop, center_crop, flip, seed, threads, subset_indices
        )

    def _build(
        self,
        path: Path,
        size: int,
        crop: tuple[tuple[float, float], tuple[float, float]] | None,
        center_crop: float,
        flip: bool,
        seed: int,
        threads: int,
        subset_indices: np.ndarray | None,
    ) -> Any:
        import_ffcv()
        from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader, OrderOption
        from ffcv.transforms import RandomHorizontalFlip

        decoder = (
            CenterCropRGBImageDecoder((size, size), center_crop)
            if crop is None
            else RandomResizedCropRGBImageDecoder((size, size), *crop)
        )
        with _threads_as_they_are():
            return Loader(
                str(path),
                self._batch_size,
                num_workers=threads,
                order=OrderOption.RANDOM,
                distributed=self._world_size > 1,
                seed=seed,
                indices=subset_indices,
                drop_last=True,
                pipelines={"image": [decoder, *([RandomHorizontalFlip()] if flip else [])], "label": [IntDecoder()]},
            )

    def steps(self) -> int:
        """Global batches in an epoch; incomplete ones are dropped."""
        return full_batches(self.samples, self._batch_size * self._world_size, self._world_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's part of each global batch of an epoch.

        Args:
            start: position in the epoch to begin at, :attr:`Batch.end` of the last batch that was used.
        """
        size = self._batch_size * self._world_size
        self._loader.next_epoch = epoch
        order = np.asarray(self._loader.next_traversal_order(), np.int64)
        steps = range(self.steps())
        with _threads_as_they_are():
            batches = iter(self._loader)
            first = next(batches)  # its thread has set the number of torch's threads by then
        try:
            for step, (images, labels) in zip(steps, itertools.chain([first], batches), strict=True):
                if size * step < start:
                    continue
                rows = order[step * self._batch_size : (step + 1) * self._batch_size]
                # Copied: FFCV uses its buffers again.
                yield Batch(
                    np.array(images), np.array(labels, np.int64).ravel(), rows, size, size * (step + 1), skipped=0
                )
        finally:
            batches.close()
            batches.join()


@contextmanager
def _threads_as_they_are() -> Iterator[None]:
    """Keeps the number of torch's threads, which FFCV sets to that of its own."""
    import torch

    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def import_ffcv() -> ModuleType:
    try:
        with _threads_as_they_are():
            import ffcv
            import ffcv.loader
    except ImportError as error:
        raise UserError(f"stock FFCV cannot be imported ({error}): {REMEDY}") from None
    return ffcv


def full_batches(samples: int, batch_size: int, world_size: int) -> int:
    """Number of steps in an epoch of so many images: FFCV gives every rank as many, and drops incomplete batches.

    Args:
        batch_size: images in a global batch; every rank takes the same number, rounded up.
    """
    return -(-samples // world_size) // -(-batch_size // world_size)


def check_split(folder: Path, split: Split) -> None:
    """Checks what training with stock FFCV needs, without opening a file.

    Raises:
        UserError: ffcv is not installed, or the split is not one file.
    """
    if len(split.files) != 1:
        raise UserError(
            f"data.reader is ffcv, which reads one file a split, and {folder} has {len(split.files)}: run "
            f"'phasecollapse merge {folder}' first"
        )
    import_ffcv()
