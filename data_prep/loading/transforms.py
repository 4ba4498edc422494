"""Augmentations: which rectangle of an image is decoded, and what happens to its pixels; for many images at once.

An augmentation is a class with the method `crop` or `apply`, and a line that registers an instance of it in
AUGMENTATIONS. Both methods are pure functions of their arguments. What an image becomes depends on its seed, epoch and
sample alone: an epoch has the same pixels for any number of threads and ranks, and when it is resumed in its middle.

Shapes: N images, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from data_prep.common.counter_rng import Purpose, uniform
from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults

ATTEMPTS = 10
_EACH = 4
"""Random numbers for an attempt: area, aspect ratio, top, left."""


class Crops(NamedTuple):
    """Rectangles, in pixels, and whether they are mirrored left to right; each (N,)."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    mirrored: np.ndarray


@dataclass(frozen=True)
class Draws:
    """Random numbers for N images, computed from their names: equal names have equal numbers."""

    seed: int
    epoch: int
    samples: np.ndarray
    """(N,) int64: the images' numbers in their split."""
    stream: int = 0
    """Number of the augmentation in the list of all: each has numbers of its own."""

    def uniform(self, count: int) -> np.ndarray:
        """(N, count) float64 in [0, 1)."""
        return uniform(count, self.seed, self.epoch, Purpose.PIXELS, self.samples, self.stream)


class Augmentation:
    """An augmentation of training images; each method returns its input unless a subclass overrides it."""

    def crop(self, crops: Crops, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Crops:
        """Changes the crops of images of these sizes (N,), before they are decoded."""
        return crops

    def apply(self, pixels_NHWC: np.ndarray, draws: Draws) -> np.ndarray:
        """Changes decoded pixels (N, H, W, 3) uint8, red green blue, in place or into a new array of the same shape.

        Called in several threads at once, with any choice of the images of a batch.
        """
        return pixels_NHWC


@dataclass(frozen=True)
class CenterCrop(Augmentation):
    """The central square whose side is a fraction of the image's shorter side; the same in every epoch."""

    fraction: float = 0.875

    def crop(self, crops: Crops, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Crops:
        """Central squares."""
        side = np.maximum(1, np.rint(self.fraction * np.minimum(heights, widths))).astype(np.int64)
        return Crops((heights - side) // 2, (widths - side) // 2, side, side, crops.mirrored)


@dataclass(frozen=True)
class RandomCrop(Augmentation):
    """A rectangle of random area, aspect ratio and place.

    The area is uniform in `scale` (as a fraction of the image's), the logarithm of the aspect ratio (width / height)
    uniform in that of `ratio`, as far as such a rectangle fits into the image; after ten that do not, it is the largest
    central one of an allowed ratio.
    """

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)

    def crop(self, crops: Crops, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Crops:
        """Random rectangles."""
        seed, epoch, samples = draws.seed, draws.epoch, draws.samples
        numbers = uniform(_EACH * ATTEMPTS, seed, epoch, Purpose.AUGMENTATION, samples)
        return self.choose(heights, widths, numbers)._replace(mirrored=crops.mirrored)

    def choose(self, heights: np.ndarray, widths: np.ndarray, numbers: np.ndarray) -> Crops:
        """The crops that uniform numbers (N, 40) in [0, 1) decide, none mirrored."""
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


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors half of the images left to right."""

    def crop(self, crops: Crops, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Crops:
        """The same rectangles, half of them mirrored."""
        numbers = uniform(1, draws.seed, draws.epoch, Purpose.AUGMENTATION, draws.samples, 1)[:, 0]
        return crops._replace(mirrored=crops.mirrored ^ (numbers < 0.5))


@dataclass(frozen=True)
class Grayscale(Augmentation):
    """Removes the color of some images: every channel gets the luma of ITU-R BT.601."""

    probability: float = 0.2

    def apply(self, pixels_NHWC: np.ndarray, draws: Draws) -> np.ndarray:
        """The same pixels, some without color."""
        chosen = np.flatnonzero(draws.uniform(1)[:, 0] < self.probability)
        luma_NHW = (pixels_NHWC[chosen] @ np.array([299, 587, 114], np.uint32) + 500) // 1000
        pixels_NHWC[chosen] = luma_NHW[..., None]
        return pixels_NHWC


@dataclass(frozen=True)
class RandomErasing(Augmentation):
    """Fills a random rectangle of some images with gray (Zhong, Zheng, Kang, Li, Yang, AAAI 2020)."""

    probability: float = 0.25
    scale: tuple[float, float] = (0.02, 1 / 3)
    """Range of the rectangle's area, as a fraction of the image's."""
    ratio: tuple[float, float] = (0.3, 10 / 3)
    """Range of its aspect ratio, width / height, uniform in the logarithm."""

    def apply(self, pixels_NHWC: np.ndarray, draws: Draws) -> np.ndarray:
        """The same pixels, some with a rectangle of gray 128."""
        chance, numbers = np.split(draws.uniform(1 + _EACH * ATTEMPTS), [1], axis=1)
        heights, widths = (np.full(len(pixels_NHWC), side) for side in pixels_NHWC.shape[1:3])
        boxes = RandomCrop(self.scale, self.ratio).choose(heights, widths, numbers)
        for i in np.flatnonzero(chance[:, 0] < self.probability):
            top, left, height, width, _ = (int(part[i]) for part in boxes)
            pixels_NHWC[i, top : top + height, left : left + width] = 128
        return pixels_NHWC


AUGMENTATIONS: Registry[Augmentation] = Registry("data.augmentations")
"""By the names that the setting data.augmentations lists; random crops and flips have settings of their own."""

AUGMENTATIONS.register("grayscale", Grayscale())
AUGMENTATIONS.register("random_erasing", RandomErasing())


def choose_crops(augmentations: Sequence[Augmentation], heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Crops:
    """The crops of images of these sizes (N,): whole images, changed by each augmentation in turn.

    Raises:
        UserError: an augmentation raises an exception, or returns a rectangle that leaves its image; names it.
    """
    zeros = np.zeros(len(heights), np.int64)
    crops = Crops(zeros, zeros, heights, widths, np.zeros(len(heights), bool))
    for stream, augmentation in enumerate(augmentations):
        with explain_faults(f"augmentation {type(augmentation).__name__}"):
            crops = Crops(*augmentation.crop(crops, heights, widths, replace(draws, stream=stream)))
            inside = (crops.top >= 0) & (crops.left >= 0) & (crops.height > 0) & (crops.width > 0)
            inside &= (crops.top + crops.height <= heights) & (crops.left + crops.width <= widths)
        if not inside.all() or len(inside) != len(heights):
            raise UserError(
                f"augmentation {type(augmentation).__name__} returned a rectangle that is empty or leaves its image: "
                "correct its method crop"
            )
    return crops


def augment_pixels(augmentations: Sequence[Augmentation], pixels_NHWC: np.ndarray, draws: Draws) -> None:
    """Changes decoded pixels (N, H, W, 3) uint8 in place, by each augmentation in turn.

    Raises:
        UserError: an augmentation raises an exception, or returns an array of another shape or type; names it.
    """
    for stream, augmentation in enumerate(augmentations):
        with explain_faults(f"augmentation {type(augmentation).__name__}"):
            augmented = augmentation.apply(pixels_NHWC, replace(draws, stream=stream))
        if augmented is pixels_NHWC:
            continue
        shape, dtype = getattr(augmented, "shape", None), getattr(augmented, "dtype", type(augmented).__name__)
        if shape != pixels_NHWC.shape or dtype != np.uint8:
            raise UserError(
                f"augmentation {type(augmentation).__name__} returned {dtype} {shape or ''} instead of uint8 "
                f"{pixels_NHWC.shape}: correct its method apply"
            )
        pixels_NHWC[:] = augmented
