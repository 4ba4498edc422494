"""How good a trained network is on a prepared data set: accuracy by class, what is taken for what, and calibration."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

from data_prep import manifest
from data_prep.crops import CenterCrop
from data_prep.errors import UserError
from data_prep.loader import Loader, OnDamage
from data_prep.manifest import ImageClass, Manifest, SplitName
from pipeline.engine import Compute, Precision
from pipeline.models import trained

BINS = 15
"""Intervals of confidence in the expected calibration error."""
TABLE, PICTURE, REPORT = "classes.csv", "confusion.png", "evaluation.json"


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
class Evaluation:
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


@dataclass(frozen=True)
class Options:
    """How to evaluate."""

    split: SplitName = "validation"
    batch_size: int = 100
    threads: int = 1
    flip: bool = False
    """Average the probabilities of each image and of its mirror image."""
    on_damage: OnDamage = "stop"
    device: str = "cpu"
    precision: Precision = "float32"


def evaluate(source: Path, data: Path, options: Options, on_images: Callable[[int], None]) -> Evaluation:
    """Passes every image of a split through the network of a run, or of a checkpoint.

    The data set may lack classes of the network: its labels are found by the ids of the classes.

    Args:
        on_images: told how many images were done since the last time.

    Raises:
        UserError: `source` is no checkpoint, `data` no data set, it has a class that the network does not know, or an
            image is damaged.
    """
    checkpoint = trained.find(source)
    network, described = trained.load(checkpoint), manifest.load(data)
    known = trained.describe(checkpoint).classes
    labels = _translation(known, described, data)
    compute = Compute(torch.device(options.device), options.precision)
    model = network.network.to(compute.device)
    loader = Loader(
        data,
        options.split,
        batch_size=options.batch_size,
        size=network.settings.data.image_size,
        cropping=CenterCrop(network.settings.data.center_crop),
        threads=options.threads,
        on_damage=options.on_damage,
        described=described,
    )
    count = len(known)
    metrics = MetricCollection(
        {
            "top1": MulticlassAccuracy(count, average="micro"),
            "top5": MulticlassAccuracy(count, top_k=min(5, count), average="micro"),
            "calibration_error": MulticlassCalibrationError(count, n_bins=BINS),
            "confusion": MulticlassConfusionMatrix(count),
        },
        compute_groups=False,
    ).to(compute.device)
    loss, images, skipped = 0.0, 0, 0
    with torch.inference_mode():
        for batch in loader.epoch(0):
            pixels = compute.move(torch.from_numpy(batch.images))
            targets = compute.move(labels[torch.from_numpy(batch.labels)])
            scores = compute.logits(model, pixels).log_softmax(1)
            if options.flip:
                mirrored = compute.logits(model, pixels.flip(2)).log_softmax(1)
                scores = torch.logaddexp(scores, mirrored) - torch.log(torch.tensor(2.0))
            metrics.update(scores.exp(), targets)
            loss += float(torch.nn.functional.nll_loss(scores, targets, reduction="sum"))
            images += len(targets)
            skipped += batch.skipped
            on_images(batch.size)
    if images == 0:
        raise UserError(f"every image of the {options.split} split of {data} is damaged: see 'phasecollapse verify'")
    found = metrics.compute()
    confusion = found.pop("confusion").cpu()
    return Evaluation(
        checkpoint=str(checkpoint),
        data=str(data),
        data_digest=described.digest,
        split=options.split,
        images=images,
        skipped_images=skipped,
        loss=loss / images,
        **{name: float(value) for name, value in found.items()},
        classes=_by_class(known, labels, confusion),
        confusion=confusion.tolist(),
    )


@contextmanager
def computing(gpu: bool, bfloat16: bool, threads: int | None) -> Iterator[dict[str, Any]]:
    """Where to compute, as fields of Options; torch's threads are as they were afterwards.

    Raises:
        UserError: there is no GPU.
    """
    if gpu and not torch.cuda.is_available():
        raise UserError("--gpu: torch sees no GPU on this machine: leave it out")
    before, cores = torch.get_num_threads(), threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    try:
        yield {
            "threads": cores,
            "device": "cuda" if gpu else "cpu",
            "precision": "bfloat16" if bfloat16 else "float32",
        }
    finally:
        torch.set_num_threads(before)


def to_json(result: Evaluation) -> str:
    """Everything, for programs."""
    return json.dumps(asdict(result), indent=1)


def summary(result: Evaluation, named: int = 3) -> str:
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


def write(result: Evaluation, folder: Path) -> None:
    """Everything as JSON, the tables as CSV, and the confusion matrix as a picture, in `folder`.

    Raises:
        UserError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / REPORT).write_text(to_json(result) + "\n", encoding="utf-8")
        with (folder / TABLE).open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["id", "name", "images", "top1", "taken_for"])
            rows.writerows(
                [one.id, one.name, one.images, f"{one.top1:.4f}", one.taken_for or ""] for one in result.classes
            )
        draw(result, folder / PICTURE)
    except OSError as error:
        raise UserError(f"--output: {folder} cannot be written: {error.strerror}") from None


def draw(result: Evaluation, path: Path) -> None:
    """The confusion matrix, each row as shares of its class; names and numbers where there is room."""
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


def _translation(known: tuple[ImageClass, ...], described: Manifest, data: Path) -> torch.Tensor:
    """The network's index of each class of the data set."""
    indices = {one.id: one.index for one in known}
    missing = [one for one in described.classes if one.id not in indices]
    if missing:
        raise UserError(
            f"{data}: the network knows no class {missing[0].id} ({missing[0].name}); it has {len(known)}, from "
            f"{known[0].id} to {known[-1].id}: evaluate it on a data set of its classes, or of some of them"
        )
    return torch.tensor([indices[one.id] for one in described.classes])


def _by_class(known: tuple[ImageClass, ...], labels: torch.Tensor, confusion: torch.Tensor) -> list[ClassResult]:
    results = []
    for index in sorted(labels.tolist()):
        row = confusion[index].clone()
        images, right = int(row.sum()), int(row[index])
        row[index] = 0
        other = known[int(row.argmax())].name if int(row.sum()) else None
        results.append(
            ClassResult(known[index].id, known[index].name, images, right / images if images else 0.0, other)
        )
    return results
