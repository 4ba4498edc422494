"""Claims about the pictures in a run's folder: they show what happened, and never stand in the way."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep.loading.loader import Loader
from data_prep.loading.transforms import CenterCrop
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import (
    ClusterSettings,
    DataSettings,
    OptimizerSettings,
    RunSettings,
    Settings,
    TrackingSettings,
    TrainingSettings,
)
from pipeline.figures import run_pictures
from pipeline.launch import launcher
from pipeline.runs import paths, trained_model
from pipeline.training.dataloader import ImageStream

PICTURES = (paths.SAMPLES, paths.CURVES, paths.CONFUSION, paths.MISTAKES, paths.FILTERS, paths.SPECTRA)
SIDE = 16


@pytest.fixture(scope="module")
def settings(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data=DataSettings(path=str(textures), image_size=SIDE, flip=False),
        run=RunSettings(name="drawn", storage=str(tmp_path_factory.mktemp("runs"))),
        model=ScatteringSettings(widths=(4, 4)),
        optimizer=OptimizerSettings(learning_rate=0.01),
        training=TrainingSettings(epochs=2, batch_size=40),
        cluster=ClusterSettings(workers=0),
        tracking=TrackingSettings(every_steps=2),
    )


@pytest.fixture(scope="module")
def run(settings: Settings) -> Path:
    return launcher.train(settings, progress=False).folder


def shown_in(sheet: np.ndarray, image: np.ndarray) -> bool:
    """Whether a picture shows an image, enlarged by a whole factor, to the last bit."""
    factor = 192 // len(image)
    large = image.repeat(factor, 0).repeat(factor, 1)
    end = np.array(sheet.shape[:2]) - large.shape[:2] + 1
    places = np.argwhere((sheet[: end[0], : end[1]] == large[0, 0]).all(2))
    for y, x in ((-1, -1), (0, -1), (-1, 0), (90, 90), (30, 120), (120, 30)):
        y, x = y % len(large), x % len(large)
        places = places[(sheet[places[:, 0] + y, places[:, 1] + x] == large[y, x]).all(1)]
    return any(np.array_equal(sheet[y : y + len(large), x : x + len(large)], large) for y, x in places)


def test_a_run_ends_with_every_picture_readable_on_any_page(run: Path) -> None:
    assert sorted(one.name for one in (run / paths.PICTURES).iterdir()) == sorted(PICTURES)
    assert not (run / paths.EVENTS).exists()
    for name in PICTURES:
        with Image.open(run / paths.PICTURES / name) as picture:
            pixels = np.asarray(picture.convert("RGBA"))
        assert min(pixels.shape[:2]) > 200
        assert (pixels[..., 3] == 255).all(), f"{name} is transparent"
        assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1], :3] == 255).all(), f"{name} is cut, or has a dark background"


def test_samples_are_what_the_network_was_fed_bit_for_bit(run: Path, settings: Settings) -> None:
    streams = [
        ImageStream(Path(settings.data.path), settings.data, "train", batch_size=40, seed=0, rank=rank, world_size=2)
        for rank in range(2)
    ]
    batches = [next(iter(stream.epoch(1))) for stream in streams]
    fed = torch.stack([batch.images[:12] for batch in batches], 1).flatten(0, 1).numpy()
    with Image.open(run / paths.PICTURES / paths.SAMPLES) as picture:
        sheet = np.asarray(picture)
    assert [shown_in(sheet, image) for image in fed] == [True] * 24
    assert not shown_in(sheet, batches[0].images[12].numpy()), "it is the 25th of the batch"


def test_the_worst_mistakes_are_the_most_certain_ones_of_all_images(run: Path, settings: Settings) -> None:
    report = run_pictures.read_report(run)
    network = trained_model.load(run)
    loader = Loader(
        settings.data.path,
        "validation",
        batch_size=70,
        size=SIDE,
        augmentations=[CenterCrop(settings.data.center_crop)],
    )
    [batch] = loader.epoch(0)
    with torch.inference_mode():
        certain, predicted = network.network(torch.from_numpy(batch.images)).softmax(1).max(1)
    wrong = [row for row in certain.argsort(descending=True).tolist() if predicted[row] != batch.labels[row]]
    assert len(report.mistakes) == min(24, len(wrong))
    for mistake, row in zip(report.mistakes, wrong, strict=False):
        assert mistake.probability == pytest.approx(float(certain[row]), abs=1e-5)
    by_number = dict(zip(batch.indices.tolist(), range(70), strict=True))
    with Image.open(run / paths.PICTURES / paths.MISTAKES) as picture:
        sheet = np.asarray(picture)
    for mistake in report.mistakes:
        row = by_number[mistake.image]
        assert mistake.name == network.classes[batch.labels[row]]
        assert mistake.predicted == network.classes[predicted[row]]
        assert shown_in(sheet, batch.images[row])


def test_what_cannot_be_drawn_is_one_sentence_and_hides_nothing_else(
    run: Path, settings: Settings, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (paths.HISTORY, paths.REPORT, paths.CHECKPOINTS):
        (copy / name).symlink_to(run / name)
    moved = settings.model_copy(update={"data": settings.data.model_copy(update={"path": str(tmp_path / "gone")})})
    failures: list[str] = []
    run_pictures.draw(copy, moved, failures.append)
    [failure] = failures
    assert paths.MISTAKES in failure and str(tmp_path / "gone") in failure and "\n" not in failure
    drawn = {one.name for one in (copy / paths.PICTURES).iterdir()}
    assert drawn == {paths.CURVES, paths.CONFUSION, paths.FILTERS, paths.SPECTRA}


def test_a_run_whose_pictures_cannot_be_written_is_trained_all_the_same(settings: Settings, tmp_path: Path) -> None:
    storage = settings.run.model_copy(update={"storage": str(tmp_path), "name": "undrawn"})
    training = settings.training.model_copy(update={"epochs": 1})
    (tmp_path / "undrawn").mkdir()
    update = {"run": storage, "training": training}
    blocked = settings.model_copy(update=update)
    first = launcher.train(blocked.model_copy(update={"tracking": TrackingSettings(pictures=False)}), progress=False)
    assert not (first.folder / paths.PICTURES).exists()
    (first.folder / paths.PICTURES).write_text("a file where a folder should be")
    longer = blocked.model_copy(update={"training": training.model_copy(update={"epochs": 2})})
    assert launcher.train(longer, progress=False).epochs == 2
    events = (first.folder / paths.EVENTS).read_text().splitlines()
    assert len(events) == len(PICTURES) and all("cannot be drawn: " in event for event in events)


def test_a_resumed_run_draws_its_curves_again(run: Path, settings: Settings) -> None:
    before = (run / paths.PICTURES / paths.CURVES).read_bytes()
    samples = Image.open(io.BytesIO((run / paths.PICTURES / paths.SAMPLES).read_bytes())).tobytes()
    training = settings.training.model_copy(update={"epochs": 3})
    launcher.train(settings.model_copy(update={"training": training}), progress=False)
    assert (run / paths.PICTURES / paths.CURVES).read_bytes() != before
    assert Image.open(run / paths.PICTURES / paths.SAMPLES).tobytes() == samples
