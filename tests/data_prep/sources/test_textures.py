"""The generated textures: reproducible, and their classes differ only in what a phase collapse keeps."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.sources.textures import CLASSES, SIDE, Textures

TRAIN, TEST = 100, 40


@pytest.fixture(scope="module")
def files() -> dict[str, list[bytes]]:
    source = Textures(3, TRAIN, TEST)
    counts = {"train": CLASSES * TRAIN, "validation": CLASSES * TEST}
    return {split: [source.read(split, i) for i in range(count)] for split, count in counts.items()}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pixels(files: dict[str, list[bytes]]) -> dict[str, np.ndarray]:
    decoded = {
        split: [np.asarray(Image.open(io.BytesIO(file))) for file in content] for split, content in files.items()
    }
    return {split: np.stack(images).astype(np.float32) for split, images in decoded.items()}


def held_out_accuracy(classifier: object, train: np.ndarray, test: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), classifier)
    model.fit(train, np.repeat(np.arange(CLASSES), TRAIN))
    return float(model.score(test, np.repeat(np.arange(CLASSES), TEST)))


def test_same_seed_gives_the_same_bytes_and_another_seed_others(files: dict[str, list[bytes]]) -> None:
    again = Textures(3, TRAIN, TEST)
    assert all(again.read("train", index) == files["train"][index] for index in (0, 1, TRAIN, CLASSES * TRAIN - 1))
    assert (
        Textures(3, 2 * TRAIN, 1).read("train", 2 * TRAIN + 5) == files["train"][TRAIN + 5]
    )  # for any number of images
    assert Textures(4, TRAIN, TEST).read("train", 0) != files["train"][0]


def test_no_image_occurs_twice(files: dict[str, list[bytes]]) -> None:
    every = files["train"] + files["validation"]
    assert len(set(every)) == len(every)


def test_files_are_equally_large_and_images_rgb_of_one_size(files: dict[str, list[bytes]]) -> None:
    assert len({len(file) for file in files["train"] + files["validation"]}) == 1
    with Image.open(io.BytesIO(files["train"][0])) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (SIDE, SIDE))


def test_mean_contrast_color_and_file_size_tell_nothing(
    files: dict[str, list[bytes]], pixels: dict[str, np.ndarray]
) -> None:
    def summarize(split: str) -> np.ndarray:
        images = pixels[split]
        sizes = [[len(file)] for file in files[split]]
        return np.hstack(
            [
                images.mean((1, 2, 3))[:, None],
                images.std((1, 2, 3))[:, None],
                images.mean((1, 2)),
                images.std((1, 2)),
                sizes,
            ]
        )

    train, test = summarize("train"), summarize("validation")
    assert held_out_accuracy(LogisticRegression(max_iter=2000), train, test) <= 0.2
    assert np.all(np.abs(train[:, :1] - 127.5) < 0.5)
    assert np.all(np.abs(train[:, 1] - 45) < 2)


def test_no_linear_classifier_on_pixels_generalizes(pixels: dict[str, np.ndarray]) -> None:
    flat = {split: images[..., 1].reshape(len(images), -1) for split, images in pixels.items()}
    assert held_out_accuracy(RidgeClassifier(alpha=100.0), flat["train"], flat["validation"]) <= 0.25


def test_energies_in_four_directions_separate_the_classes(pixels: dict[str, np.ndarray]) -> None:
    vertical, horizontal = np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None, :]
    angle, radius = np.arctan2(vertical, horizontal), np.hypot(vertical, horizontal)
    band = (radius > 0.08) & (radius < 0.25)
    directions = np.arange(4) * np.pi / 4
    windows = np.stack([np.cos(angle - direction) ** 4 * band for direction in directions])

    def energies(split: str) -> np.ndarray:
        power = np.abs(np.fft.fft2(pixels[split].mean(-1) - 127.5)) ** 2
        return np.log(np.einsum("nhw,dhw->nd", power, windows))

    assert held_out_accuracy(LogisticRegression(C=1e4, max_iter=5000), energies("train"), energies("validation")) >= 0.9
