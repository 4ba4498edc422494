"""Claims about crops: what they may be, and what decides them."""

from __future__ import annotations

import math

import numpy as np

from data_prep.loading.transforms import CenterCrop, RandomCrop

ALL_LARGE = np.full((1, 40), 0.999)


def sizes(height: int, width: int, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, height), np.full(count, width)


def test_random_crops_fill_the_allowed_areas_and_ratios() -> None:
    crops = RandomCrop((0.1, 0.9), (0.5, 2.0)).crops(*sizes(300, 400, 4000), 0, 0, np.arange(4000))
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
    crop = RandomCrop()
    heights, widths = np.arange(100, 200), np.arange(300, 400)
    together = np.stack(crop.crops(heights, widths, 1, 2, np.arange(100)))
    backwards = np.stack(crop.crops(heights[::-1], widths[::-1], 1, 2, np.arange(100)[::-1]))
    alone = np.stack(crop.crops(heights[31:32], widths[31:32], 1, 2, np.array([31])))
    assert np.array_equal(together, backwards[:, ::-1]) and np.array_equal(together[:, 31:32], alone)
    for seed, epoch in ((0, 2), (1, 3)):
        other = np.stack(crop.crops(heights, widths, seed, epoch, np.arange(100)))
        assert np.mean(np.any(other[:4] != together[:4], axis=0)) > 0.95
        assert 20 < np.sum(other[4] != together[4]) < 80


def test_mirroring_does_not_move_crops() -> None:
    arguments = (*sizes(100, 120, 500), 0, 0, np.arange(500))
    mirrored, plain = RandomCrop(flip=True).crops(*arguments), RandomCrop(flip=False).crops(*arguments)
    assert all(np.array_equal(a, b) for a, b in zip(mirrored[:4], plain[:4], strict=True))
    assert not plain.mirrored.any() and mirrored.mirrored.any()


def test_center_crop_is_the_central_square() -> None:
    def center(height: int, width: int, fraction: float) -> list[int]:
        return [int(part[0]) for part in CenterCrop(fraction).crops(*sizes(height, width), 0, 0, np.zeros(1, int))]

    assert center(100, 200, 0.5) == [25, 75, 50, 50, 0]
    assert center(3, 2, 0.1) == [1, 0, 1, 1, 0]
