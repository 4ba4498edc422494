"""How good a network is, beyond one number: accuracy by class, what is taken for what, and calibration.

The same report is made at the end of a run, by its workers, and by `phasecollapse evaluate`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.format.manifest import ImageClass

BINS = 15
"""Intervals of confidence in the expected calibration error."""
TABLE, PICTURE, EVERYTHING = "classes.csv", "confusion.png", "evaluation.json"


@dataclass(frozen=True)
class ClassResult:
    """A class of the data set."""

    id: str
    name: str
    images: int
    top1: float
    """Share of its images that were recognized."""
    taken_for: str | None
    """The name of the class that its other images were taken for most often."""


@dataclass(frozen=True)
class Report:
    """What an evaluation came to."""

    checkpoint: str
    data: str
    data_digest: str
    split: str
    images: int
    skipped_images: int
    """Damaged ones."""
    loss: float
    """Mean cross-entropy, without label smoothing."""
    top1: float
    top5: float
    calibration_error: float
    """Expected calibration error: mean distance of confidence and accuracy over 15 intervals of confidence."""
    classes: list[ClassResult]
    confusion: list[list[int]]
    """Images by class (rows) and by answer (columns)."""


class Observer:
    """Looks at what a network says of images, on every rank; what it found is of all ranks together.

    Args:
        classes: of the network.
    """

    def __init__(self, classes: Sequence[ImageClass], device: torch.device) -> None:
        # Imported here: it takes seconds, which every worker would spend before its first step.
        from torchmetrics import MetricCollection
        from torchmetrics.classification import (
            MulticlassAccuracy,
            MulticlassCalibrationError,
            MulticlassConfusionMatrix,
        )

        self._classes = classes
        count = len(classes)
        self._metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(count, average="micro"),
                "top5": MulticlassAccuracy(count, top_k=min(5, count), average="micro"),
                "calibration_error": MulticlassCalibrationError(count, n_bins=BINS),
                "confusion": MulticlassConfusionMatrix(count),
            },
            compute_groups=False,
        ).to(device)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Takes the probabilities of a batch, (b, classes), and its labels, (b,)."""
        if len(labels):
            self._metrics.update(probabilities, labels)

    def report(
        self,
        *,
        checkpoint: str,
        data: str,
        data_digest: str,
        split: str,
        loss: float,
        skipped_images: int,
        labels: Sequence[int] | None = None,
    ) -> Report:
        """What was found; every rank has to ask.

        Args:
            labels: of the classes that the data set has; by default all.
        """
        found = self._metrics.compute()
        confusion = found.pop("confusion").cpu()
        return Report(
            checkpoint=checkpoint,
            data=data,
            data_digest=data_digest,
            split=split,
            images=int(confusion.sum()),
            skipped_images=skipped_images,
            loss=loss,
            **{name: float(value) for name, value in found.items()},
            classes=_by_class(self._classes, range(len(self._classes)) if labels is None else labels, confusion),
            confusion=confusion.tolist(),
        )


def to_json(result: Report) -> str:
    """Everything, for programs."""
    return json.dumps(asdict(result), indent=1)


def summary(result: Report, named: int = 3) -> str:
    """The result in a few lines, with the worst and the best classes."""
    ranked = sorted((one for one in result.classes if one.images), key=lambda one: (one.top1, one.id))
    left_out = f" ({result.skipped_images} damaged ones left out)" if result.skipped_images else ""
    lines = [
        f"{result.checkpoint} on {result.images} images{left_out}, {result.split} split of {result.data}",
        f"top-1 {100 * result.top1:.2f} %, top-5 {100 * result.top5:.2f} %, loss {result.loss:.4f}, "
        f"calibration error {100 * result.calibration_error:.1f} %",
    ]
    for title, some in (("worst", ranked[:named]), ("best", ranked[::-1][:named])):
        words = (
            f"{one.name} {100 * one.top1:.1f} %" + (f" (taken for {one.taken_for})" if one.taken_for else "")
            for one in some
        )
        lines.append(f"{title}: {', '.join(words)}")
    return "\n".join(lines)


def write(result: Report, folder: Path) -> None:
    """Everything as JSON, the tables as CSV, and the confusion matrix as a picture, in `folder`.

    Raises:
        UserError: it cannot be written.
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
        draw(result, folder / PICTURE)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from None


def draw(result: Report, path: Path) -> None:
    """The confusion matrix, each row as shares of its class; names and numbers where there is room."""
    from matplotlib.figure import Figure

    shown = [number for number, row in enumerate(result.confusion) if sum(row)]
    shares = torch.tensor(result.confusion, dtype=torch.float64)[shown]
    shares /= shares.sum(1, keepdim=True)
    rows, columns = shares.shape
    side = min(16.0, 3 + 0.35 * columns)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axis, shrink=0.8, label="share of the class's images")
    axis.set(xlabel="answer", ylabel="class", title=f"top-1 {100 * result.top1:.2f} % of {result.images} images")
    if columns <= 40:
        names = [one.name for one in result.classes]
        axis.set_yticks(range(rows), names[:rows] if len(names) == rows else [])
    if columns <= 20:
        for row in range(rows):
            for column in range(columns):
                value = float(shares[row, column])
                if value >= 0.005:
                    color = "white" if value > 0.5 else "black"
                    axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=110)


def _by_class(known: Sequence[ImageClass], labels: Sequence[int], confusion: Tensor) -> list[ClassResult]:
    results = []
    for index in sorted(labels):
        row = confusion[index].clone()
        images, right = int(row.sum()), int(row[index])
        row[index] = 0
        other = known[int(row.argmax())].name if int(row.sum()) else None
        results.append(
            ClassResult(known[index].id, known[index].name, images, right / images if images else 0.0, other)
        )
    return results
