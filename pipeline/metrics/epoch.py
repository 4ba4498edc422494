"""What an epoch of training comes to: sums that stay on the device until asked for, and a watch over the loss."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.common.errors import UserError
from pipeline.runtime.collectives import all_gather, sum_over_ranks, world_size

Found = tuple[str, float, list[int]]
"""What is not finite, its value, and the images of a rank."""
NAMED = 16
"""Images that a complaint about a step names."""


@dataclass(frozen=True)
class EpochSums:
    """How far an epoch of training is, and sums over it, over all ranks. A checkpoint within the epoch carries it."""

    steps: int = 0
    """Steps that are done."""
    position: int = 0
    """Images of the epoch, in its order, that are behind it."""
    loss: float = 0.0
    hits: float = 0.0
    """Images whose class had the highest score when they were trained on."""
    images: float = 0.0
    skipped: float = 0.0
    """Damaged images that were left out."""
    gradient_norm: float = 0.0
    """Sum over steps."""
    seconds: float = 0.0
    waiting: float = 0.0
    """Seconds, of those, in which a rank had no batch to work on; the mean over ranks."""
    learning_rate: float = 0.0
    """Of the last step."""

    def metrics(self) -> dict[str, float]:
        """Means of the epoch, as the history has them."""
        return {
            "train/loss": self.loss / self.images,
            "train/top1": self.hits / self.images,
            "train/images_per_second": self.images / self.seconds,
            "train/seconds": self.seconds,
            "train/waiting_for_data": self.waiting / self.seconds,
            "train/gradient_norm": self.gradient_norm / self.steps,
            "train/skipped_images": self.skipped,
            "learning_rate": self.learning_rate,
        }


class Meter:
    """Adds up an epoch of training, on from what a checkpoint within it had."""

    def __init__(self, begun: EpochSums, device: torch.device) -> None:
        self._begun = begun
        self._device = device
        self._on_device = torch.zeros(3, dtype=torch.float64, device=device)  # loss, hits, gradient norm
        self._images = self._skipped = 0
        self._waiting = 0.0
        self._started = time.perf_counter()
        self.steps, self.position, self._learning_rate = begun.steps, begun.position, begun.learning_rate
        self._asked = (self._started, self.position, self._waiting)

    def waited(self, seconds: float) -> None:
        """Adds time in which there was no batch."""
        self._waiting += seconds

    @torch.no_grad()
    def add(
        self,
        loss: Tensor,
        hits: Tensor,
        norm: Tensor,
        *,
        images: int,
        skipped: int,
        position: int,
        learning_rate: float,
    ) -> None:
        """Adds a step of this rank; `norm` is that of the gradient of all ranks, `position` is behind the step."""
        self._on_device += torch.stack([loss.double(), hits.double(), norm.double()])
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

    def totals(self) -> EpochSums:
        """The sums over all ranks, each of which has to ask."""
        loss, hits, norm = self._on_device.tolist()  # waits for the device, so the clock is read after it
        seconds = time.perf_counter() - self._started
        own = [loss, hits, float(self._images), float(self._skipped), norm, seconds, self._waiting]
        loss, hits, images, skipped, norm, seconds, waiting = sum_over_ranks(own, self._device)
        ranks, begun = world_size(), self._begun
        return EpochSums(
            self.steps,
            self.position,
            begun.loss + loss,
            begun.hits + hits,
            begun.images + images,
            begun.skipped + skipped,
            begun.gradient_norm + norm / ranks,
            begun.seconds + seconds / ranks,
            begun.waiting + waiting / ranks,
            self._learning_rate,
        )


class Watch:
    """Stops a run whose loss or gradient is no longer finite, and says in which step and on which images it happened.

    What is watched is copied to the host in the background and looked at `lag` steps later: looking at once would make
    the host wait for a GPU at every step. What the network learned in between is lost with the run.
    """

    def __init__(self, epoch: int, lag: int) -> None:
        self.epoch = epoch
        self.lag = lag
        self._pending: deque[tuple[int, Tensor, Tensor, torch.cuda.Event | None]] = deque()
        self._sums = [0.0, 0.0, 0.0, 0.0]  # of the steps looked at: their number, their images, losses, norms

    def add(self, step: int, indices: Tensor, loss: Tensor, norm: Tensor) -> None:
        """Notes the loss of a step on this rank, and the norm of its gradient, which is that of all ranks.

        Raises:
            UserError: one that is `lag` steps old is not finite; the same on every rank.
        """
        event = None
        values = torch.stack([loss.detach().float(), norm.detach().float()])
        if values.is_cuda:
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, indices, values, event))
        if len(self._pending) > self.lag:
            self._check()

    def recent(self) -> dict[str, float]:
        """Mean loss of this rank's images, and mean norm of the gradient, in steps looked at since the last call."""
        steps, images, loss, norm = self._sums
        self._sums = [0.0] * 4
        return {"step/loss": loss / max(1.0, images), "step/gradient_norm": norm / max(1.0, steps)}

    def drain(self) -> None:
        """Looks at all that is left; raises UserError if one is not finite."""
        while self._pending:
            self._check()

    def _check(self) -> None:
        step, indices, values, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        loss, norm = values.tolist()
        if values.isfinite().all():
            for index, value in enumerate((1, len(indices), loss, norm)):
                self._sums[index] += value
            return
        what, value = ("gradient", norm) if values[0].isfinite() else ("loss", loss)
        found = [(what, value, indices.tolist())]
        if not values[1].isfinite():  # so it is on every rank: each learns whose loss it was
            found = all_gather(found[0])
            found = [one for one in found if one[0] == "loss"] or found
        what, value, _ = found[0]
        images = [index for one in found for index in one[2]]
        named = ", ".join(map(str, images[:NAMED])) + (
            f" and {len(images) - NAMED} more" if len(images) > NAMED else ""
        )
        raise UserError(
            f"the {what} became {value} in epoch {self.epoch}, step {step} (training images {named}): lower "
            "optimizer.learning_rate, lengthen optimizer.warmup_epochs, or set optimizer.clip_norm"
        )
