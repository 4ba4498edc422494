"""Detects losses and gradients that are not finite, without making the host wait for the device."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from data_prep.common.errors import TrainingError
from pipeline.runtime.collectives import all_gather

Finding = tuple[str, float, list[int]]
"""What is not finite, its value, and the images of a rank."""
NAMED = 16
"""Images that a complaint about a step names."""


class NonFiniteGuard:
    """Stops a run whose loss or gradient is no longer finite, and names the step and its images.

    Values are copied to the host asynchronously and checked `lag` steps later, so that the host never waits for a GPU.
    The updates of the steps in between are lost with the run.
    """

    def __init__(self, epoch: int, lag: int) -> None:
        self.epoch = epoch
        self.lag = lag
        self._pending: deque[tuple[int, Tensor, Tensor, torch.cuda.Event | None]] = deque()
        self._sums = [0.0, 0.0, 0.0, 0.0]  # of the steps looked at: their number, their images, losses, norms

    def add(self, step: int, indices: Tensor, loss: Tensor, norm: Tensor) -> None:
        """Notes the loss of a step on this rank, and the norm of its gradient, which is that of all ranks.

        Raises:
            TrainingError: one that is `lag` steps old is not finite; the same on every rank.
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
        """Looks at all that is left; raises TrainingError if one is not finite."""
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
        raise TrainingError(
            f"the {what} became {value} in epoch {self.epoch}, step {step} (training images {named}): lower "
            "optimizer.learning_rate, lengthen optimizer.warmup_epochs, or set optimizer.max_grad_norm"
        )
