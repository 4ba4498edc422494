"""Metrics of an epoch by name, accumulated on the device and summed over ranks when they are asked for.

A metric is one entry of the mapping that is given to ``update``: ``{"loss": loss_sum}`` becomes ``train/loss``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from pipeline.runtime.collectives import sum_over_ranks, world_size

MEASURED = ("loss", "top1", "top5", "skipped_images")
"""What every evaluation measures."""
METRICS: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("metric", reserved=MEASURED)
"""Metrics of evaluations beside loss, top-1 and top-5: functions of logits (B, C) and labels (B,) whose result, a
scalar tensor, is the sum over the images. The mean over all images is reported as ``validation/NAME``."""


def registered_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The metrics of METRICS by name, summed over the images of a batch: logits (B, C), labels (B,).

    Raises:
        UserError: one raises an exception, or returns something other than a scalar tensor.
    """
    sums = {}
    for name, metric in METRICS.items():
        with explain_faults(f"metric {name}"):
            value = metric(logits, labels)
        if not isinstance(value, Tensor) or value.dim() > 0:
            found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise UserError(f"metric {name} returns {found} instead of a scalar tensor: the sum over the images")
        sums[name] = value.to(logits.device)
    return sums


def check_registered(means: Mapping[str, float]) -> None:
    """Checks the metrics of METRICS over all ranks: names what is not finite where the loss is, as in a network that
    has not diverged.

    Raises:
        UserError: a metric is NaN or infinite.
    """
    if math.isfinite(means["loss"]):
        for name in METRICS:
            if not math.isfinite(means[name]):
                raise UserError(f"metric {name} is {means[name]} over all images: return a finite sum for each batch")


@dataclass(frozen=True)
class EpochTotals:
    """Progress of a training epoch and its sums over all ranks; stored in checkpoints within the epoch."""

    steps: int = 0
    """Steps done."""
    position: int = 0
    """Position in the epoch's order of images after those steps."""
    images: float = 0.0
    skipped: float = 0.0
    """Damaged images that were left out."""
    image_sums: Mapping[str, float] = field(default_factory=dict)
    """Metrics that are means over images, as sums over them."""
    step_sums: Mapping[str, float] = field(default_factory=dict)
    """Metrics that are means over steps, as sums over them."""
    seconds: float = 0.0
    data_wait_seconds: float = 0.0
    """Seconds, of those, without a batch to train on; the mean over ranks."""
    learning_rate: float = 0.0
    """Learning rate of the last step."""

    def metrics(self) -> dict[str, float]:
        """Means over the epoch, by the names of the history."""
        return {
            **{f"train/{name}": value / self.images for name, value in self.image_sums.items()},
            "train/images_per_second": self.images / self.seconds,
            "train/seconds": self.seconds,
            "train/waiting_for_data": self.data_wait_seconds / self.seconds,
            **{f"train/{name}": value / self.steps for name, value in self.step_sums.items()},
            "train/skipped_images": self.skipped,
            "learning_rate": self.learning_rate,
        }


class NamedSums:
    """Sums by name, in float64 on the device.

    Args:
        names: by default those of the first update.
    """

    def __init__(self, device: torch.device, names: Iterable[str] = ()) -> None:
        self._device = device
        self._names = tuple(names)
        self._sums = torch.zeros(len(self._names), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Adds a scalar to each sum; never waits for the device.

        Raises:
            ValueError: the names are others.
        """
        if not self._names:
            self._names = tuple(values)
            self._sums = torch.zeros(len(values), dtype=torch.float64, device=self._device)
        if tuple(values) != self._names:
            raise ValueError(f"metrics {list(values)} are updated where there were {list(self._names)}")
        if values:
            self._sums += torch.stack([value.double() for value in values.values()])

    def read(self) -> dict[str, float]:
        """The sums of this rank; waits for the device."""
        return dict(zip(self._names, self._sums.tolist(), strict=True))


class EpochAccumulator:
    """Accumulates the metrics of a training epoch, starting from the totals of a checkpoint within it."""

    def __init__(self, resume_from: EpochTotals, device: torch.device) -> None:
        self._resume_from = resume_from
        self._device = device
        self._image_sums, self._step_sums = NamedSums(device), NamedSums(device)
        self._images = self._skipped = 0
        self._data_wait_seconds = 0.0
        self._started = time.perf_counter()
        self.steps, self.position = resume_from.steps, resume_from.position
        self._learning_rate = resume_from.learning_rate
        self._last_recent = (self._started, self.position, self._data_wait_seconds)

    def add_data_wait(self, seconds: float) -> None:
        """Adds time in which there was no batch."""
        self._data_wait_seconds += seconds

    def update(
        self,
        image_sums: Mapping[str, Tensor],
        step_values: Mapping[str, Tensor],
        *,
        images: int,
        skipped: int,
        position: int,
        learning_rate: float,
    ) -> None:
        """Adds a step of this rank.

        Args:
            image_sums: metrics summed over this rank's images; their means over images are reported.
            step_values: metrics of the step, equal on all ranks; their means over steps are reported.
            position: in the epoch's order of images, after the step.
        """
        self._image_sums.update(image_sums)
        self._step_sums.update(step_values)
        self._images += images
        self._skipped += skipped
        self.steps += 1
        self.position, self._learning_rate = position, learning_rate

    def recent(self) -> dict[str, float]:
        """Metrics of the steps since the last call, by the host's clock; waits for neither device nor ranks.

        Images/s are those of all ranks together, the learning rate that of the last step.
        """
        started, position, waited = self._last_recent
        self._last_recent = (time.perf_counter(), self.position, self._data_wait_seconds)
        seconds = self._last_recent[0] - started
        return {
            "step/images_per_second": (self.position - position) / seconds,
            "step/waiting_for_data": (self._data_wait_seconds - waited) / seconds,
            "step/learning_rate": self._learning_rate,
        }

    def totals(self) -> EpochTotals:
        """The totals over all ranks; a collective operation, so every rank calls it."""
        image_sums, step_sums = self._image_sums.read(), self._step_sums.read()
        seconds = time.perf_counter() - self._started  # after the device has finished
        counts = [float(self._images), float(self._skipped), seconds, self._data_wait_seconds]
        own = [*image_sums.values(), *step_sums.values(), *counts]
        *values, images, skipped, seconds, waited = sum_over_ranks(own, self._device)
        ranks, before = world_size(), self._resume_from
        return EpochTotals(
            steps=self.steps,
            position=self.position,
            images=before.images + images,
            skipped=before.skipped + skipped,
            image_sums=_added(before.image_sums, dict(zip(image_sums, values, strict=False))),
            step_sums=_added(
                before.step_sums,
                {name: value / ranks for name, value in zip(step_sums, values[len(image_sums) :], strict=True)},
            ),
            seconds=before.seconds + seconds / ranks,
            data_wait_seconds=before.data_wait_seconds + waited / ranks,
            learning_rate=self._learning_rate,
        )


def _added(before: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    """Sums by name; a name that one of the two lacks has 0 there."""
    return {name: before.get(name, 0.0) + more.get(name, 0.0) for name in {**before, **more}}
