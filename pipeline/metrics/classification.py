"""Classification metrics of an evaluation, over all ranks: accuracy, calibration and the confusion matrix.

Training reports them after its last epoch, and `phasecollapse evaluate` for any prepared data set.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data_prep.format.manifest import ImageClass
from pipeline.metrics.mistakes import WorstMistakes
from pipeline.metrics.report import ClassResult, EvaluationReport

BINS = 15
"""Confidence intervals in the expected calibration error."""


class ClassificationMetrics:
    """Accumulates the metrics of a network's answers on every rank; the report is over all ranks.

    Args:
        classes: of the network, in the order of its logits.
        device: where batches are.
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
        self._mistakes = WorstMistakes(classes, device)

    def update(self, probabilities: Tensor, labels: Tensor, images: Tensor) -> None:
        """Adds a batch.

        Args:
            probabilities: (B, classes).
            labels: (B,).
            images: (B,), numbers of the images in their split.
        """
        if len(labels):
            self._metrics.update(probabilities, labels)
            self._mistakes.update(probabilities, labels, images)

    def report(
        self,
        *,
        checkpoint: str,
        data: str,
        data_digest: str,
        split: str,
        loss: float,
        skipped_images: int,
        registered: dict[str, float],
        labels: Sequence[int] | None = None,
    ) -> EvaluationReport:
        """The report over all ranks; every rank must call this.

        Args:
            checkpoint, data, data_digest, split, loss, skipped_images, registered: fields of the report.
            labels: of the classes that the data set has; by default all.
        """
        values = self._metrics.compute()
        confusion = values.pop("confusion").cpu()
        return EvaluationReport(
            checkpoint=checkpoint,
            data=data,
            data_digest=data_digest,
            split=split,
            images=int(confusion.sum()),
            skipped_images=skipped_images,
            loss=loss,
            **{name: float(value) for name, value in values.items()},
            classes=_by_class(self._classes, range(len(self._classes)) if labels is None else labels, confusion),
            confusion=confusion.tolist(),
            registered=registered,
            mistakes=self._mistakes.result(),
        )


def _by_class(classes: Sequence[ImageClass], labels: Sequence[int], confusion: Tensor) -> list[ClassResult]:
    results = []
    for label in sorted(labels):
        row = confusion[label].clone()
        images, correct = int(row.sum()), int(row[label])
        row[label] = 0
        confused_with = classes[int(row.argmax())].name if int(row.sum()) else None
        results.append(
            ClassResult(
                classes[label].id,
                classes[label].name,
                images,
                correct / images if images else 0.0,
                confused_with,
                int(row.max()),
            )
        )
    return results
