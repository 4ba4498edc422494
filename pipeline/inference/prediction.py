"""Predicts the classes of image files with a trained network."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from data_prep.codec import convert
from data_prep.codec.decode import JOB, DecodeError, decode_batch
from data_prep.common.errors import UserError, printable
from data_prep.loading.transforms import CenterCrop, Draws, choose_crops
from data_prep.prepare.spec import MAX_SIDE
from data_prep.sources.image_index import is_clutter
from pipeline.runs import trained_model
from pipeline.runs.trained_model import TrainedModel


@dataclass(frozen=True)
class Answer:
    """A class and its probability."""

    id: str
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image file."""

    file: str
    answers: tuple[Answer, ...]
    """In order of decreasing probability; empty if the file cannot be read as an image."""
    problem: str | None = None
    """Why the file cannot be read; None if it can."""


def find(places: Sequence[Path]) -> list[Path]:
    """The image files among `places`, and those in the folders among them, at any depth, sorted by name. Hidden files
    and clutter are left out, as in `prepare`.

    Raises:
        UserError: a place does not exist or cannot be read, or there is no image.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += [
                path
                for path in _files_below(place)
                if path.suffix.lower() in convert.SUFFIXES
                and not is_clutter(path.relative_to(place).as_posix())
                and path.is_file()
            ]
        elif place.is_file():
            found.append(place)
        else:
            what = "is not a regular file" if place.exists() else "does not exist"
            raise UserError(f"{place} {what}: name image files, or folders of them")
    if not found:
        raise UserError(
            f"no images in {', '.join(map(str, places))}: their names end in {', '.join(sorted(convert.SUFFIXES))}"
        )
    return found


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}; ask for access, or name other folders")

    return sorted(Path(top, name) for top, _, names in os.walk(folder, onerror=refuse) for name in names)


def predict(source: Path, files: Iterable[Path], *, top: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
    """Predicts the classes of image files, in order.

    Images are processed as in validation of a data set with the default encoding: turned upright, converted to RGB,
    shrunk to at most 512 pixels a side, center-cropped and resized by the settings of the run.

    Args:
        source: folder of a run, whose latest checkpoint is used, or of one checkpoint.
        files: of images.
        top: number of classes per image.
        batch_size: images per forward pass.

    Raises:
        UserError: `source` is not a checkpoint, or is damaged.
    """
    checkpoint = trained_model.find(source)
    network, classes = trained_model.load(checkpoint), trained_model.describe(checkpoint).classes
    remaining = iter(files)
    while part := list(itertools.islice(remaining, batch_size)):
        pixels, problems = _read(part, network)
        readable = [row for row, problem in enumerate(problems) if problem is None]
        with torch.inference_mode():
            best = network.network(torch.from_numpy(pixels[readable])).softmax(1).topk(min(top, len(classes)), dim=1)
        rows = dict(zip(readable, zip(best.values.tolist(), best.indices.tolist(), strict=True), strict=True))
        for row, (file, problem) in enumerate(zip(part, problems, strict=True)):
            likely, indices = rows.get(row, ((), ()))
            answers = [Answer(classes[i].id, classes[i].name, p) for p, i in zip(likely, indices, strict=True)]
            yield Prediction(str(file), tuple(answers), problem)


def to_row(prediction: Prediction) -> str:
    """A prediction as one line of text."""
    file = printable(prediction.file)
    if prediction.problem:
        return f"{file}  cannot be read: {printable(prediction.problem)}"
    answers = (f"{100 * one.probability:5.1f} % {printable(one.name)}" for one in prediction.answers)
    return f"{file}  {'  '.join(answers)}"


def to_json(prediction: Prediction) -> str:
    """A prediction as one line of JSON."""
    return json.dumps(asdict(prediction))


def _read(files: Sequence[Path], network: TrainedModel) -> tuple[np.ndarray, list[str | None]]:
    """Pixels (B, H, W, 3) for the network, and the problem of each file or None; unreadable images are black."""
    settings = network.settings.data
    pixels = np.zeros((len(files), settings.image_size, settings.image_size, 3), np.uint8)
    problems: list[str | None] = []
    for row, file in enumerate(files):
        try:
            _fill(pixels[row : row + 1], convert.to_jpeg(file.read_bytes(), MAX_SIDE["jpeg"]), settings.center_crop)
            problems.append(None)
        except DecodeError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(error.strerror or str(error))
    return pixels, problems


def _fill(out: np.ndarray, stored: convert.StoredImage, fraction: float) -> None:
    content = np.frombuffer(stored.content, np.uint8)
    draws = Draws(seed=0, epoch=0, samples=np.zeros(1, np.int64))  # a central crop uses none
    crops = choose_crops([CenterCrop(fraction)], np.array([stored.height]), np.array([stored.width]), draws)
    jobs = np.zeros(1, JOB)
    jobs["address"], jobs["size"] = content.ctypes.data, content.size
    jobs["mode"], jobs["height"], jobs["width"] = stored.mode, stored.height, stored.width
    jobs["top"], jobs["left"], jobs["crop_height"], jobs["crop_width"], jobs["mirrored"] = crops
    for problem in decode_batch(jobs, out):
        raise DecodeError(problem.message, problem.kind)
