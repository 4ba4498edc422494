"""Agreement of all ranks on actions after a step, decided by rank 0: save, poll for preemption, or stop.

Rank 0 broadcasts its action in the background of the next step, so that no rank waits for it, and all ranks act on it
after the same step.
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
    """Actions after a step, as flags."""

    NOTHING = 0
    SAVE = enum.auto()
    """Save a checkpoint."""
    POLL = enum.auto()
    """Ask the cluster whether nodes are about to be preempted."""
    STOP = enum.auto()
    """Save a checkpoint and end: requested by the user or a scheduler."""


class RankCoordinator:
    """Gives all ranks the same action after each step, of training and of evaluation.

    Args:
        requested: returns at once what is requested from outside; called on rank 0 only, after each step.
        save_seconds: interval of the action SAVE; None for never.
        preemption_poll_seconds: interval of the action POLL; None for never.
    """

    def __init__(
        self,
        requested: Callable[[], StepAction],
        save_seconds: float | None = None,
        preemption_poll_seconds: float | None = None,
    ) -> None:
        self._requested = requested
        self._every = {StepAction.SAVE: save_seconds, StepAction.POLL: preemption_poll_seconds}
        self._last = dict.fromkeys(self._every, time.monotonic())
        # A process group of its own, so that its messages wait neither for gradients nor for a GPU.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo")) if world_size() > 1 else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None

    def after_step(self) -> StepAction:
        """The action after this step, the same on every rank; every rank must call this after each step."""
        if self._group is None:
            return self._own()
        agreed = self._arrived()
        message = torch.tensor([int(self._own()) if dist.get_rank() == 0 else 0])
        work = dist.broadcast(message, src=0, group=self._group, async_op=True)
        self._pending = (cast(dist.Work, work), message)
        return agreed

    def saved(self) -> None:
        """Restarts the interval of SAVE, after a checkpoint that was saved for another reason."""
        self._last[StepAction.SAVE] = time.monotonic()

    def close(self) -> None:
        """Completes the pending broadcast; every rank must call this before the process group is destroyed."""
        self._arrived()

    def _own(self) -> StepAction:
        now, action = time.monotonic(), StepAction.NOTHING
        for timed, seconds in self._every.items():
            if seconds is not None and now - self._last[timed] >= seconds:
                self._last[timed] = now
                action |= timed
        return action | self._requested()

    def _arrived(self) -> StepAction:
        if self._pending is None:
            return StepAction.NOTHING
        work, message = self._pending
        work.wait()
        self._pending = None
        return StepAction(int(message[0]))
