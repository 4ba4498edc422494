"""The worst mistakes of an evaluation, as images with their classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.common.errors import UserError
from data_prep.format.manifest import SplitName, load_manifest
from data_prep.loading.loader import Loader
from data_prep.loading.transforms import CenterCrop
from pipeline.figures import image_sheet
from pipeline.figures.image_sheet import Tile
from pipeline.metrics.report import EvaluationReport

TITLE = "Worst mistakes"


def draw(result: EvaluationReport, data: Path, size: int, center_crop: float) -> bytes | None:
    """The images that were classified wrongly with the highest probability, as the network saw them; None if every
    image was classified correctly.

    Args:
        data: folder of the data set.
        size: side of the network's input, in pixels.
        center_crop: as in the settings of the data.

    Raises:
        UserError: the data set is not there, is another one, or an image is damaged.
    """
    if not result.mistakes:
        return None
    manifest = load_manifest(data)
    if manifest.digest != result.data_digest:
        raise UserError(f"{data} is another data set than the evaluated one")
    split: SplitName = "validation" if result.split == "validation" else "train"
    numbers = np.unique([one.image for one in result.mistakes])
    loader = Loader(
        data,
        split,
        batch_size=len(numbers),
        size=size,
        augmentations=[CenterCrop(center_crop)],
        subset_indices=numbers,
        manifest=manifest,
    )
    [batch] = loader.epoch(0)
    pixels = dict(zip(batch.indices.tolist(), batch.images, strict=True))
    tiles = [
        Tile(pixels[one.image], one.name, f"image {one.image}", f"{100 * one.probability:.1f} % {one.predicted}")
        for one in result.mistakes
    ]
    count = round((1 - result.top1) * result.images)
    wrong = f"{count:,} of {result.images:,} {result.split} images are classified wrongly"
    these = f"these {len(tiles)} with the highest probability" if len(tiles) > 1 else "one of them is shown"
    return image_sheet.draw(TITLE, f"{wrong}, {these}. Below each: its class; in red, the prediction.", tiles)
