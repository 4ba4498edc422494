"""Augmentations by name: a registered one from outside this package changes training images, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import datasets

INVERT = """
import numpy as np

from data_prep.loading.transforms import AUGMENTATIONS, Augmentation


class Invert(Augmentation):
    def apply(self, pixels_NHWC, draws):
        chosen = draws.uniform(1)[:, 0] < 0.5
        return np.where(chosen[:, None, None, None], 255 - pixels_NHWC, pixels_NHWC)


AUGMENTATIONS.register("invert", Invert())
"""
LOAD = """
import json, sys
from pathlib import Path

import numpy as np

from pipeline.config.schema import DataSettings
from pipeline.training.dataloader import ImageStream

folder, subset, names, threads, ranks, start, output = json.loads(sys.argv[1])
data = DataSettings(path=folder, image_size=24, augmentations=names, decode_threads=threads)
streams = [
    ImageStream(Path(folder), data, subset, batch_size=16, seed=1, rank=rank, world_size=ranks) for rank in range(ranks)
]
batches = [batch for stream in streams for batch in stream.epoch(3, start)]
indices = np.concatenate([batch.indices.numpy() for batch in batches])
images = np.concatenate([batch.images.numpy() for batch in batches])
np.savez(output, indices=indices, images=images)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 50 training images, beside a module `invert` that registers an augmentation."""
    root = tmp_path_factory.mktemp("augmentations")
    datasets.write_dataset(root / "noise", {"train": (50,), "validation": (11,)})
    (root / "invert.py").write_text(INVERT, encoding="utf-8")
    return root


def load(
    folder: Path, *names: str, subset: str = "train", threads: int = 1, ranks: int = 1, start: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and pixels of the images from position `start` of an epoch on, by number, in a process of its own."""
    output = folder / "loaded.npz"
    arguments = [str(folder / "noise"), subset, names, threads, ranks, start, str(output)]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "PHASECOLLAPSE_EXTENSIONS": "invert"}
    subprocess.run([sys.executable, "-c", LOAD, json.dumps(arguments)], env=environment, check=True)
    with np.load(output) as loaded:
        order = np.argsort(loaded["indices"])
        return loaded["indices"][order], loaded["images"][order]


def test_one_of_another_package_changes_the_images_that_it_draws(folder: Path) -> None:
    _, plain = load(folder)
    _, augmented = load(folder, "invert")
    inverted = np.all(augmented == 255 - plain, axis=(1, 2, 3))
    assert 15 < inverted.sum() < 35
    assert np.array_equal(augmented[~inverted], plain[~inverted])


def test_threads_ranks_and_a_resumed_epoch_do_not_matter(folder: Path) -> None:
    names = ("invert", "grayscale", "random_erasing")
    indices, images = load(folder, *names)
    assert indices.tolist() == list(range(50))
    for threads, ranks in ((3, 1), (1, 3)):
        assert np.array_equal(load(folder, *names, threads=threads, ranks=ranks)[1], images)
    rest, pixels = load(folder, *names, start=32)
    assert len(rest) == 18 and np.array_equal(pixels, images[rest])


def test_images_of_validation_stay_as_they_are(folder: Path) -> None:
    assert np.array_equal(load(folder, "invert", subset="validation")[1], load(folder, subset="validation")[1])
