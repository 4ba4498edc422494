"""The report of an evaluation: its numbers, its text for people, and its files (JSON, CSV, confusion matrix)."""

from __future__ import annotations

import csv
import json
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

from data_prep.common.errors import UserError

TABLE, PICTURE, EVERYTHING = "classes.csv", "confusion.png", "evaluation.json"
"""Files of a report: a row per class, the confusion matrix as a picture, and all numbers."""


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


def to_json(result: EvaluationReport) -> str:
    """The whole report as JSON."""
    return json.dumps(asdict(result), indent=1)


def summary(result: EvaluationReport, named: int = 3) -> str:
    """The report in a few lines, with the `named` worst and best classes."""
    ranked = sorted((one for one in result.classes if one.images), key=lambda one: (one.top1, one.id))
    left_out = f" ({result.skipped_images} damaged ones left out)" if result.skipped_images else ""
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


def check_folder(folder: Path) -> None:
    """Makes the folder of a report, before the evaluation, and checks that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name in (TABLE, PICTURE, EVERYTHING):
            if (folder / name).exists():
                with (folder / name).open("ab"):
                    pass
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}; name another folder") from None


def write(result: EvaluationReport, folder: Path) -> None:
    """Writes the report into `folder`: JSON of everything, a CSV table of the classes, and the confusion matrix.

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
        draw_confusion_matrix(result).savefig(folder / PICTURE, dpi=110)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None


def draw_confusion_matrix(result: EvaluationReport) -> Figure:
    """The confusion matrix of the classes that have images, each row as fractions of its class, with names and numbers
    where there is room."""
    from matplotlib.figure import Figure  # takes a second to import

    shown = [number for number, row in enumerate(result.confusion) if sum(row)]
    shares = torch.tensor(result.confusion, dtype=torch.float64)[shown]
    shares /= shares.sum(1, keepdim=True)
    rows, columns = shares.shape
    side = min(16.0, 3 + 0.35 * columns)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the class's images")
    axis.set(
        xlabel="predicted class", ylabel="class", title=f"top-1 {100 * result.top1:.2f} % of {result.images} images"
    )
    if columns <= 40:
        axis.set_yticks(range(rows), [one.name for one in result.classes if one.images])
        if len(result.classes) == columns:  # otherwise the network has classes that the data set lacks
            axis.set_xticks(range(columns), [one.name for one in result.classes], rotation=90)
    if columns <= 20:
        for row in range(rows):
            for column in range(columns):
                value = float(shares[row, column])
                if value >= 0.005:
                    color = "white" if value > 0.5 else "black"
                    axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8)
    return figure
