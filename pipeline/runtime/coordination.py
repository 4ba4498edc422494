"""What all ranks of a run do after a step besides going on, decided by the first one: save, look around, or stop.

The first rank's wish travels to the others in the background of the next step, so that nobody waits for it, and all act
on it after the same one.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import cast

import torch
import torch.distributed as dist

from pipeline.runtime.collectives import world_size


class StepAction(enum.IntFlag):
    """What is to be done after a step."""

    NOTHING = 0
    SAVE = enum.auto()
    """Save the state of the run: it is time to."""
    LOOK = enum.auto()
    """Ask the cluster whether nodes are about to be taken away."""
    STOP = enum.auto()
    """Save, and end: the user, or a scheduler, wants it."""


class RankCoordinator:
    """Every rank calls :meth:`after_step` after each of its steps, of training and of evaluation.

    Args:
        stop_requested: whether somebody wants the run to stop; asked on the first rank alone.
        save_seconds: between two wishes to save; None for never.
        look_seconds: between two wishes to look around; None for never.
    """

    ASK_SECONDS = 0.25
    """Between two questions whether to stop, which may go to a file on a network."""

    def __init__(
        self,
        stop_requested: Callable[[], bool],
        save_seconds: float | None = None,
        preemption_poll_seconds: float | None = None,
    ) -> None:
        self._stop_requested = stop_requested
        self._every = {StepAction.SAVE: save_seconds, StepAction.LOOK: preemption_poll_seconds}
        self._last = dict.fromkeys(self._every, time.monotonic())
        self._asked = 0.0
        # A group of its own: its messages wait neither for gradients nor for a GPU.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if world_size() > 1 else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def after_step(self) -> StepAction:
        """What is to be done after this step, the same on every rank."""
        if self._group is None:
            return self._own()
        agreed = self._arrived()
        message = torch.tensor([int(self._own()) if dist.get_rank() == 0 else 0])
        work = dist.broadcast(message, src=0, group=self._group, async_op=True)
        self._pending = (cast(dist.Work, work), message)
        return agreed

    def saved(self) -> None:
        """Tells that the state has just been saved, for another reason than a wish."""
        self._last[StepAction.SAVE] = time.monotonic()

    def close(self) -> None:
        """Ends what is under way, so that the ranks may part."""
        self._arrived()

    def _own(self) -> StepAction:
        now, wish = time.monotonic(), StepAction.NOTHING
        for each, seconds in self._every.items():
            if seconds is not None and now - self._last[each] >= seconds:
                self._last[each] = now
                wish |= each
        if now - self._asked >= self.ASK_SECONDS:
            self._asked = now
            wish |= StepAction.STOP if self._stop_requested() else StepAction.NOTHING
        return wish

    def _arrived(self) -> StepAction:
        if self._pending is None:
            return StepAction.NOTHING
        work, message = self._pending
        work.wait()
        self._pending = None
        return StepAction(int(message[0]))
