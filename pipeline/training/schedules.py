"""Schedules: the learning rate of each step, by name, and the image size of each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from pipeline.config.schema import OptimizerSettings, Settings

SIZE_STEP = 16
"""Pixels by which images grow at a time."""

Decay = Callable[[int, int, int, int, OptimizerSettings], float]
"""(step, steps of the run, steps of the warm-up, steps of an epoch, settings) → factor on the peak learning rate.

Steps are counted from 0 at the start of the run. It is asked for the steps after the warm-up only."""

SCHEDULES: Registry[Decay] = Registry("optimizer.schedule")


def cosine(step: int, steps: int, warmup: int, steps_per_epoch: int, settings: OptimizerSettings) -> float:
    """Half a cosine, from 1 after the warm-up to 0 at the step after the last one."""
    progress = (step - warmup) / max(1, steps - warmup)
    return (1 + math.cos(math.pi * min(1.0, progress))) / 2


def step_decay(step: int, steps: int, warmup: int, steps_per_epoch: int, settings: OptimizerSettings) -> float:
    """Division by `step_factor` every `step_epochs`, counted from the start of the run."""
    return settings.step_factor ** -(step // (settings.step_epochs * steps_per_epoch))


SCHEDULES.register("cosine", cosine)
SCHEDULES.register("step", step_decay)


def build_schedule(optimizer: Optimizer, settings: OptimizerSettings, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """The learning rate of each step; its ``step()`` is called after each step of the optimizer."""
    return LambdaLR(optimizer, lambda step: rate_factor(step, settings, epochs, steps_per_epoch))


def rate_factor(step: int, settings: OptimizerSettings, epochs: int, steps_per_epoch: int) -> float:
    """Factor on the peak learning rate in step 0, 1, … of the run.

    The warm-up climbs linearly and reaches the peak in its last step; then the schedule decays.

    Raises:
        UserError: the registered schedule raises an exception, or returns no finite number.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    name = settings.schedule
    decay = SCHEDULES.find(name)
    with explain_faults(f"optimizer.schedule: {name}"):
        factor = float(decay(step, epochs * steps_per_epoch, warmup, steps_per_epoch, settings))
    if not math.isfinite(factor):
        raise UserError(f"optimizer.schedule: {name} returns {factor} for step {step}: return a finite factor")
    return factor


def image_size(settings: Settings, epoch: int) -> int:
    """Side, in pixels, of the training images of an epoch counted from 1; it grows linearly from first to last."""
    last, first = settings.data.image_size, settings.training.initial_image_size or settings.data.image_size
    growing = settings.training.resize_end_fraction * settings.training.epochs
    if epoch - 1 >= growing:
        return last
    return min(last, first + SIZE_STEP * round((last - first) * (epoch - 1) / growing / SIZE_STEP))
