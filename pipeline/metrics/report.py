"""The report of an evaluation: its numbers, its text for people, and its files (JSON, CSV)."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_prep.common.errors import UserError, count_of
from pipeline.metrics.mistakes import Mistake

TABLE, EVERYTHING = "classes.csv", "evaluation.json"
"""Files of a report: a row per class, and all numbers."""


@dataclass(frozen=True)
class ClassResult:
    """Results for one class of the data set."""

    id: str
    name: str
    images: int
    top1: float
    """Fraction of its images that were classified correctly."""
    taken_for: str | None
    """Name of the class most often predicted instead; None if its images were all classified correctly."""
    most_confused: int = 0
    """Number of its images for which that class was predicted."""


@dataclass(frozen=True)
class EvaluationReport:
    """Results of an evaluation."""

    checkpoint: str
    data: str
    data_digest: str
    split: str
    images: int
    skipped_images: int
    """Damaged images, left out."""
    loss: float
    """Mean cross-entropy, without label smoothing."""
    top1: float
    top5: float
    calibration_error: float
    """Expected calibration error: mean distance between confidence and accuracy, over 15 confidence intervals."""
    classes: list[ClassResult]
    confusion: list[list[int]]
    """Number of images by class (rows) and predicted class (columns)."""
    registered: dict[str, float] = field(default_factory=dict)
    """Metrics that are registered from elsewhere, by name: means over the images."""
    mistakes: list[Mistake] = field(default_factory=list)
    """The wrong answers of which the network was most certain, the most certain first."""


def to_json(result: EvaluationReport) -> str:
    """The whole report as JSON."""
    return json.dumps(asdict(result), indent=1)


def summary(result: EvaluationReport, named: int = 3) -> str:
    """The report in a few lines, with the `named` worst and best classes."""
    ranked = sorted((one for one in result.classes if one.images), key=lambda one: (one.top1, one.id))
    left_out = f" ({count_of(result.skipped_images, 'damaged image')} left out)" if result.skipped_images else ""
    lines = [
        f"{result.checkpoint} on {result.images} images{left_out}, {result.split} split of {result.data}",
        f"top-1 {100 * result.top1:.2f} %, top-5 {100 * result.top5:.2f} %, loss {result.loss:.4f}, "
        f"calibration error {100 * result.calibration_error:.1f} %",
        *(f"{name} {value:.4f}" for name, value in result.registered.items()),
    ]
    for title, some in (("worst", ranked[:named]), ("best", ranked[::-1][:named])):
        named_results = (
            f"{one.name} {100 * one.top1:.1f} %" + (f" (taken for {one.taken_for})" if one.taken_for else "")
            for one in some
        )
        lines.append(f"{title}: {', '.join(named_results)}")
    return "\n".join(lines)


def check_folder(folder: Path, pictures: Sequence[str] = ()) -> None:
    """Makes the folder of a report and its `pictures`, before the evaluation, and checks that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in (TABLE, EVERYTHING, *pictures):
            if (folder / name).exists():
                with (folder / name).open("ab"):
                    pass
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}; name another folder") from None


def write(result: EvaluationReport, folder: Path) -> None:
    """Writes the report into `folder`: JSON of everything, and a CSV table of the classes.

    Raises:
        UserError: `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EVERYTHING).write_text(to_json(result) + "\n", encoding="utf-8")
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "name", "images", "top1", "taken_for"])
            rows.writerows(
                [one.id, one.name, one.images, f"{one.top1:.4f}", one.taken_for or ""] for one in result.classes
            )
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None
