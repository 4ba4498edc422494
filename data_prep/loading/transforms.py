"""Which rectangle of an image fills the network's input, for many images at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_prep.common.counter_rng import Purpose, uniform

ATTEMPTS = 10
_EACH = 4
"""Random numbers for an attempt: area, aspect ratio, top, left."""


class Crops(NamedTuple):
    """Rectangles, in pixels, and whether they are mirrored left to right; each (n,)."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class CenterCrop:
    """The central square whose side is a fraction of the image's shorter side; the same in every epoch."""

    fraction: float = 0.875
    flip: bool = False
    """Mirror half of the images."""

    def crops(self, heights: np.ndarray, widths: np.ndarray, seed: int, epoch: int, samples: np.ndarray) -> Crops:
        """The crops of images of these sizes (n,)."""
        side = np.maximum(1, np.rint(self.fraction * np.minimum(heights, widths))).astype(np.int64)
        mirrored = _mirrored(self.flip, seed, epoch, samples)
        return Crops((heights - side) // 2, (widths - side) // 2, side, side, mirrored)


@dataclass(frozen=True)
class RandomCrop:
    """A rectangle of random area, aspect ratio and place, a function of (seed, epoch, sample) for each image.

    The area is uniform in `scale` (as a fraction of the image's), the logarithm of the aspect ratio (width / height)
    uniform in that of `ratio`, as far as such a rectangle fits into the image; after ten that do not, it is the largest
    central one of an allowed ratio.
    """

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = True
    """Mirror half of the images."""

    def crops(self, heights: np.ndarray, widths: np.ndarray, seed: int, epoch: int, samples: np.ndarray) -> Crops:
        """The crops of images of these sizes (n,)."""
        numbers = uniform(_EACH * ATTEMPTS, seed, epoch, Purpose.AUGMENTATION, samples)
        mirrored = _mirrored(self.flip, seed, epoch, samples)
        return self.choose(heights, widths, numbers)._replace(mirrored=mirrored)

    def choose(self, heights: np.ndarray, widths: np.ndarray, numbers: np.ndarray) -> Crops:
        """The crops that uniform numbers (n, 40) in [0, 1) decide, none mirrored."""
        for_area, for_ratio, for_top, for_left = np.moveaxis(numbers.reshape(len(numbers), ATTEMPTS, _EACH), 2, 0)
        low, high = np.log(self.ratio)
        area = (heights * widths)[:, None] * (self.scale[0] + (self.scale[1] - self.scale[0]) * for_area)
        aspect = np.exp(low + (high - low) * for_ratio)
        height, width = (np.rint(np.sqrt(part)).astype(np.int64) for part in (area / aspect, area * aspect))
        fits = (height > 0) & (height <= heights[:, None]) & (width > 0) & (width <= widths[:, None])
        first = np.argmax(fits, axis=1)
        rows = np.arange(len(first))
        height, width = height[rows, first], width[rows, first]
        top = (for_top[rows, first] * (heights - height + 1)).astype(np.int64)
        left = (for_left[rows, first] * (widths - width + 1)).astype(np.int64)
        none = ~fits.any(axis=1)
        if none.any():
            center_height = np.clip(np.rint(widths / self.ratio[0]).astype(np.int64), 1, heights)
            center_width = np.clip(np.rint(heights * self.ratio[1]).astype(np.int64), 1, widths)
            height, width = np.where(none, center_height, height), np.where(none, center_width, width)
            top = np.where(none, (heights - height) // 2, top)
            left = np.where(none, (widths - width) // 2, left)
        return Crops(top, left, height, width, np.zeros(len(first), bool))


def _mirrored(flip: bool, seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    if not flip:
        return np.zeros(len(samples), bool)
    return uniform(1, seed, epoch, Purpose.AUGMENTATION, samples, 1)[:, 0] < 0.5
