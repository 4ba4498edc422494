"""When the pictures of a run are drawn: in the user's process, before its workers start and after they have ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.format.manifest import ImageClass
from pipeline.config.schema import Settings
from pipeline.figures import image_sheet, run_pictures
from pipeline.figures.run_pictures import draw_one
from pipeline.runs import paths
from pipeline.tracking.writer import ProgressWriter
from pipeline.training.dataloader import Batch, ImageStream
from pipeline.training.schedules import image_size

MOST = 24
"""Images of a sheet of samples."""


def first_images(settings: Settings) -> tuple[Batch, list[ImageClass]]:
    """The first images of the first batch of the first epoch, at most MOST, on any number of workers; and the classes.

    Raises:
        UserError: an image cannot be decoded, or the data set is damaged.
    """
    data = settings.data.model_copy(update={"image_size": image_size(settings, 1)})
    # An image is cropped and augmented by (seed, epoch, number) alone: a smaller batch holds the same ones.
    stream = ImageStream(
        Path(settings.data.path),
        data,
        "train",
        batch_size=min(MOST, settings.training.batch_size),
        seed=settings.training.seed,
    )
    epoch = stream.epoch(1)
    try:
        return next(epoch), stream.classes
    finally:
        epoch.close()  # type: ignore[attr-defined]


@contextmanager
def drawn(run: Path, settings: Settings) -> Iterator[None]:
    """Draws samples of the network's input before the body, in some tenths of a second, and everything else after it.

    A picture that cannot be drawn is an event of the run. Stock FFCV's augmentation has no seed, so that a run with
    data.reader=ffcv has no samples.
    """
    on_failure = ProgressWriter(run).event
    if settings.tracking.pictures and settings.data.reader == "native":
        draw_one(run / paths.PICTURES / paths.SAMPLES, lambda: _samples(settings), on_failure)
    yield
    if settings.tracking.pictures:
        run_pictures.draw(run, settings, on_failure)


def _samples(settings: Settings) -> bytes:
    batch, classes = first_images(settings)
    tiles = [
        image_sheet.Tile(pixels.numpy(), classes[label].name, f"image {index}")
        for pixels, label, index in zip(batch.images, batch.labels.tolist(), batch.indices.tolist(), strict=True)
    ]
    side = batch.images.shape[1]
    subtitle = f"First images of the first batch of epoch 1, {side} × {side} pixels, after cropping and augmentation"
    return image_sheet.draw("What the network was fed", subtitle, tiles)
