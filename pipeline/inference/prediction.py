"""Predicts the classes of image files with a trained network."""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_prep.codec import convert
from data_prep.codec.decode import DecodeError
from data_prep.common.errors import UserError, printable
from data_prep.sources.image_index import HIDDEN_OR_CLUTTER, NO_FILES, PassedOver, is_clutter
from pipeline.inference.classifier import Answer, classify, to_pixels
from pipeline.runs import trained_model
from pipeline.runs.trained_model import TrainedModel


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image file."""

    file: str
    answers: tuple[Answer, ...]
    """In order of decreasing probability; empty if the file cannot be read as an image."""
    problem: str | None = None
    """Why the file cannot be read; None if it can."""


@dataclass(frozen=True)
class Found:
    """Image files, and what was found beside them."""

    files: list[Path]
    passed_over: list[str]
    """Sentences about the other files of folders."""


def find(places: Sequence[Path]) -> Found:
    """The image files among `places`, and those in the folders among them, at any depth, sorted by name. Hidden files
    and clutter are left out, as in `prepare`, and so are files whose names do not end like those of images.

    Raises:
        UserError: a place does not exist or cannot be read, or there is no image.
    """
    found: list[Path] = []
    passed_over = PassedOver()
    for place in places:
        if place.is_dir():
            for path in _files_below(place):
                if reason := _why_not(path, place):
                    passed_over.add(reason, str(path))
                else:
                    found.append(path)
        elif place.is_file():
            found.append(place)
        else:
            what = "is not a regular file" if place.exists() else "does not exist"
            raise UserError(f"{place} {what}: name image files, or folders of them")
    if not found:
        others = "".join(f"; {sentence}" for sentence in passed_over.sentences())
        raise UserError(
            f"no images in {', '.join(map(str, places))}: their names end in {', '.join(sorted(convert.SUFFIXES))}"
            f"{others}"
        )
    return Found(found, passed_over.sentences())


def _why_not(path: Path, folder: Path) -> str | None:
    """Why a file of a folder is passed over; None if it is taken for an image."""
    if is_clutter(path.relative_to(folder).as_posix()):
        return HIDDEN_OR_CLUTTER
    if not path.is_file():
        return NO_FILES
    if path.suffix.lower() not in convert.SUFFIXES:
        return f"names that end in {path.suffix.lower()}" if path.suffix else "names without an ending"
    return None


def _files_below(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}; ask for access, or name other folders")

    return sorted(Path(top, name) for top, _, names in os.walk(folder, onerror=refuse) for name in names)


def predict(source: Path, files: Iterable[Path], *, top: int = 5, batch_size: int = 64) -> Iterator[Prediction]:
    """Predicts the classes of image files, in order.

    Args:
        source: folder of a run, whose latest checkpoint is used, or of one checkpoint.
        files: of images.
        top: number of classes per image.
        batch_size: images per forward pass.

    Raises:
        UserError: `source` is not a checkpoint, or is damaged.
    """
    network = trained_model.load(source)
    remaining = iter(files)
    while part := list(itertools.islice(remaining, batch_size)):
        pixels, problems = _read(part, network)
        readable = [row for row, problem in enumerate(problems) if problem is None]
        answers = dict(zip(readable, classify(network, pixels[readable], top), strict=True))
        for row, (file, problem) in enumerate(zip(part, problems, strict=True)):
            yield Prediction(str(file), answers.get(row, ()), problem)


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
    size = network.settings.data.image_size
    pixels = np.zeros((len(files), size, size, 3), np.uint8)
    problems: list[str | None] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what counts is whether the image decodes
        for row, file in enumerate(files):
            try:
                pixels[row] = to_pixels(file.read_bytes(), network)
                problems.append(None)
            except DecodeError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(error.strerror or str(error))
    return pixels, problems
