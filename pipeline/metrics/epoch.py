"""Metrics of a training epoch, accumulated on the device and summed over ranks when they are asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.runtime.collectives import sum_over_ranks, world_size


@dataclass(frozen=True)
class EpochTotals:
    """Progress of a training epoch and its sums over all ranks; stored in checkpoints within the epoch."""

    steps: int = 0
    """Steps that are done."""
    position: int = 0
    """Images of the epoch, in its order, that are behind it."""
    loss: float = 0.0
    correct: float = 0.0
    """Images whose class had the highest score when they were trained on."""
    images: float = 0.0
    skipped: float = 0.0
    """Damaged images that were left out."""
    gradient_norm: float = 0.0
    """Sum over steps."""
    seconds: float = 0.0
    data_wait_seconds: float = 0.0
    """Seconds, of those, in which a rank had no batch to work on; the mean over ranks."""
    learning_rate: float = 0.0
    """Of the last step."""

    def metrics(self) -> dict[str, float]:
        """Means of the epoch, as the history has them."""
        return {
            "train/loss": self.loss / self.images,
            "train/top1": self.correct / self.images,
            "train/images_per_second": self.images / self.seconds,
            "train/seconds": self.seconds,
            "train/waiting_for_data": self.data_wait_seconds / self.seconds,
            "train/gradient_norm": self.gradient_norm / self.steps,
            "train/skipped_images": self.skipped,
            "learning_rate": self.learning_rate,
        }


class EpochAccumulator:
    """Accumulates the metrics of a training epoch, starting from the totals of a checkpoint within it."""

    def __init__(self, resume_from: EpochTotals, device: torch.device) -> None:
        self._resume_from = resume_from
        self._device = device
        self._on_device = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits, gradient norm
        self._images = self._skipped = 0
        self._waiting = 0.0
        self._started = time.perf_counter()
        self.steps, self.position, self._learning_rate = (
            resume_from.steps,
            resume_from.position,
            resume_from.learning_rate,
        )
        self._asked = (self._started, self.position, self._waiting)

    def add_data_wait(self, seconds: float) -> None:
        """Adds time in which there was no batch."""
        self._waiting += seconds

    @torch.no_grad()
    def add(
        self,
        loss: Tensor,
        correct: Tensor,
        norm: Tensor,
        *,
        images: int,
        skipped: int,
        position: int,
        learning_rate: float,
    ) -> None:
        """Adds a step of this rank; `norm` is that of the gradient of all ranks, `position` is behind the step."""
        self._on_device += torch.stack([loss.double(), correct.double(), norm.double()])
        self._images += images
        self._skipped += skipped
        self.steps += 1
        self.position, self._learning_rate = position, learning_rate

    def recent(self) -> dict[str, float]:
        """Of the steps since the last call, by the host's clock: asks neither the device nor other ranks.

        Images/s are those of all ranks together, the learning rate that of the last step.
        """
        started, position, waiting = self._asked
        self._asked = (time.perf_counter(), self.position, self._waiting)
        seconds = self._asked[0] - started
        return {
            "step/images_per_second": (self.position - position) / seconds,
            "step/waiting_for_data": (self._waiting - waiting) / seconds,
            "step/learning_rate": self._learning_rate,
        }

    def totals(self) -> EpochTotals:
        """The sums over all ranks, each of which has to ask."""
        loss, correct, norm = self._on_device.tolist()  # waits for the device, so the clock is read after it
        seconds = time.perf_counter() - self._started
        own = [loss, correct, float(self._images), float(self._skipped), norm, seconds, self._waiting]
        loss, correct, images, skipped, norm, seconds, waiting = sum_over_ranks(own, self._device)
        ranks, resume_from = world_size(), self._resume_from
        return EpochTotals(
            self.steps,
            self.position,
            resume_from.loss + loss,
            resume_from.correct + correct,
            resume_from.images + images,
            resume_from.skipped + skipped,
            resume_from.gradient_norm + norm / ranks,
            resume_from.seconds + seconds / ranks,
            resume_from.data_wait_seconds + waiting / ranks,
            self._learning_rate,
        )
