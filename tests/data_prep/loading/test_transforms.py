"""Claims about crops: what they may be, and what decides them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.loading.transforms import (
    AUGMENTATIONS,
    Augmentation,
    CenterCrop,
    Crops,
    Draws,
    Flip,
    RandomCrop,
    augment_pixels,
    choose_crops,
)

ALL_LARGE = np.full((1, 40), 0.999)
EXPECTED_CROPS = [[9, 39, 105, 42], [68, 64, 137, 149], [259, 198, 182, 203], [273, 235, 216, 160], [1, 0, 0, 0]]
"""Top, left, height, width, mirrored of four images: runs that are resumed need the same ones."""


def sizes(height: int, width: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, height), np.full(count, width)


def crops_of(
    augmentations: list[Augmentation],
    heights: np.ndarray,
    widths: np.ndarray,
    seed: int,
    epoch: int,
    samples: np.ndarray,
) -> Crops:
    return choose_crops(augmentations, heights, widths, Draws(seed, epoch, samples))


def test_random_crops_fill_the_allowed_areas_and_ratios() -> None:
    crops = crops_of([RandomCrop((0.1, 0.9), (0.5, 2.0)), Flip()], *sizes(300, 400, 4000), 0, 0, np.arange(4000))
    areas = crops.height * crops.width / (300 * 400)
    ratios = np.log(crops.width / crops.height)
    assert np.all((crops.top >= 0) & (crops.top <= 300 - crops.height))
    assert np.all((crops.left >= 0) & (crops.left <= 400 - crops.width))
    assert 0.098 < areas.min() < 0.11 and 0.85 < areas.max() < 0.905
    assert abs(ratios).max() < math.log(2) + 0.03 and ratios.min() < -0.6 and ratios.max() > 0.6
    small = areas < 0.3  # all of which fit, so that areas are uniform there, and places too
    assert abs(np.mean(areas[small]) - 0.2) < 0.01
    top, left, height, width, _ = (part[small] for part in crops)
    places = np.stack([top / (300 - height), left / (400 - width)])
    assert np.allclose(places.mean(1), 0.5, atol=0.03) and np.allclose(places.std(1), 12**-0.5, atol=0.03)
    assert 0.45 < np.mean(crops.mirrored) < 0.55


def test_crops_that_cannot_fit_become_the_largest_central_one() -> None:
    def largest(height: int, width: int, *ranges: tuple[float, float]) -> list[int]:
        return [int(part[0]) for part in RandomCrop(*ranges).choose(*sizes(height, width), ALL_LARGE)[:4]]

    assert largest(10, 1000, (0.9, 1.0), (0.5, 2.0)) == [0, 490, 10, 20]
    assert largest(1000, 10, (0.9, 1.0), (0.5, 2.0)) == [490, 0, 20, 10]
    assert largest(1, 1, (0.01, 0.02), (0.5, 2.0)) == [0, 0, 1, 1]


def test_a_crop_belongs_to_seed_epoch_and_sample_alone() -> None:
    crop: list[Augmentation] = [RandomCrop(), Flip()]
    heights, widths = np.arange(100, 200), np.arange(300, 400)
    together = np.stack(crops_of(crop, heights, widths, 1, 2, np.arange(100)))
    backwards = np.stack(crops_of(crop, heights[::-1], widths[::-1], 1, 2, np.arange(100)[::-1]))
    alone = np.stack(crops_of(crop, heights[31:32], widths[31:32], 1, 2, np.array([31])))
    assert np.array_equal(together, backwards[:, ::-1]) and np.array_equal(together[:, 31:32], alone)
    for seed, epoch in ((0, 2), (1, 3)):
        other = np.stack(crops_of(crop, heights, widths, seed, epoch, np.arange(100)))
        assert np.mean(np.any(other[:4] != together[:4], axis=0)) > 0.95
        assert 20 < np.sum(other[4] != together[4]) < 80


def test_mirroring_does_not_move_crops() -> None:
    arguments = (*sizes(100, 120, 500), 0, 0, np.arange(500))
    mirrored, plain = crops_of([RandomCrop(), Flip()], *arguments), crops_of([RandomCrop()], *arguments)
    assert all(np.array_equal(a, b) for a, b in zip(mirrored[:4], plain[:4], strict=True))
    assert not plain.mirrored.any() and mirrored.mirrored.any()


def test_center_crop_is_the_central_square() -> None:
    def center(height: int, width: int, fraction: float) -> list[int]:
        crops = crops_of([CenterCrop(fraction)], *sizes(height, width), 0, 0, np.zeros(1, int))
        return [int(part[0]) for part in crops]

    assert center(100, 200, 0.5) == [25, 75, 50, 50, 0]
    assert center(3, 2, 0.1) == [1, 0, 1, 1, 0]


def gradient(count: int) -> np.ndarray:
    """(count, 32, 32, 3) uint8, each image with colors of its own."""
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


def test_crops_and_flips_have_the_numbers_that_they_always_had() -> None:
    crops = crops_of([RandomCrop(), Flip()], *sizes(300, 400, 4), 3, 5, np.arange(4))
    assert np.stack(crops).tolist() == EXPECTED_CROPS


def test_grayscale_removes_the_color_of_some_images_and_leaves_the_others() -> None:
    before, after = gradient(2000), gradient(2000)
    augment_pixels([AUGMENTATIONS["grayscale"]], after, Draws(0, 0, np.arange(2000)))
    gray = np.all(after == after[..., :1], axis=(1, 2, 3))
    assert 0.17 < gray.mean() < 0.23 and np.array_equal(after[~gray], before[~gray])
    luma = before[gray] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(after[gray][..., 0] - luma).max() <= 0.501


def test_random_erasing_fills_a_rectangle_of_some_images() -> None:
    before, after = gradient(2000), gradient(2000)
    augment_pixels([AUGMENTATIONS["random_erasing"]], after, Draws(0, 0, np.arange(2000)))
    changed = np.any(after != before, axis=3)
    erased = changed.any(axis=(1, 2))
    assert 0.22 < erased.mean() < 0.28
    assert np.all(after[changed] == 128)
    areas = changed[erased].mean(axis=(1, 2))
    assert 0.015 < areas.min() < 0.05 and 0.28 < areas.max() < 0.37


def test_augmentations_of_pixels_depend_on_seed_epoch_and_sample_alone() -> None:
    names = [AUGMENTATIONS["grayscale"], AUGMENTATIONS["random_erasing"]]

    def augmented(seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
        pixels = gradient(200)[samples]
        augment_pixels(names, pixels, Draws(seed, epoch, samples))
        return pixels

    together = augmented(1, 2, np.arange(200))
    assert np.array_equal(together, augmented(1, 2, np.arange(200)[::-1])[::-1])
    assert np.array_equal(together[31:32], augmented(1, 2, np.array([31])))
    for seed, epoch in ((0, 2), (1, 3)):
        assert np.any(augmented(seed, epoch, np.arange(200)) != together, axis=(1, 2, 3)).sum() > 40


def test_an_augmentation_that_returns_another_shape_is_named() -> None:
    class Shrinking(Augmentation):
        def apply(self, pixels_NHWC: np.ndarray, draws: Draws) -> np.ndarray:
            return pixels_NHWC[:, ::2]

    with pytest.raises(UserError, match=r"augmentation Shrinking returned uint8 \(1, 16, 32, 3\) instead of"):
        augment_pixels([Shrinking()], gradient(1), Draws(0, 0, np.arange(1)))
