"""The worst mistakes of an evaluation: images of which a network is most certain that they are something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.format.manifest import ImageClass
from pipeline.runtime.collectives import all_gather

MOST = 24
"""Number of mistakes that are kept."""


@dataclass(frozen=True)
class Mistake:
    """A wrong answer."""

    image: int
    """Number of the image in its split, as in 'phasecollapse inspect' and 'verify'."""
    name: str
    """Of its class."""
    predicted: str
    """Name of the class that was predicted."""
    probability: float
    """Of the predicted class."""


class WorstMistakes:
    """Keeps the most certain wrong answers of a rank, on the device; never waits for it.

    Args:
        classes: of the network, in the order of its logits.
        device: where batches are.
        most: number of mistakes to keep.
    """

    def __init__(self, classes: Sequence[ImageClass], device: torch.device, most: int = MOST) -> None:
        self._classes, self._most = classes, most
        self._probability = torch.empty(0, device=device)
        self._rows = torch.empty((0, 3), dtype=torch.int64, device=device)  # image, label, predicted

    def update(self, probabilities: Tensor, labels: Tensor, images: Tensor) -> None:
        """Adds a batch.

        Args:
            probabilities: (B, classes).
            labels: (B,).
            images: (B,), numbers of the images in their split.
        """
        best, predicted = probabilities.max(1)
        certain = torch.where(predicted == labels, -1.0, best.float()).nan_to_num(-1.0)  # a network that diverged
        every = torch.cat([self._probability, certain])
        rows = torch.stack([images.to(labels.device, non_blocking=True), labels, predicted], dim=1)
        self._probability, kept = every.topk(min(self._most, len(every)))
        self._rows = torch.cat([self._rows, rows])[kept]

    def result(self) -> list[Mistake]:
        """The most certain mistakes over all ranks, in falling order; every rank must call this."""
        own = list(zip(self._probability.tolist(), self._rows.tolist(), strict=True))
        every = [one for rank in all_gather(own) for one in rank if one[0] >= 0]
        every.sort(key=lambda one: (-one[0], one[1]))
        return [
            Mistake(image, self._classes[label].name, self._classes[predicted].name, probability)
            for probability, (image, label, predicted) in every[: self._most]
        ]
