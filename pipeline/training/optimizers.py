"""The optimizer, its learning rate step by step, and the size of images epoch by epoch."""

from __future__ import annotations

import math

from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pipeline.config.schema import OptimizerSettings, Settings
from pipeline.models import ImageNetwork

SIZE_STEP = 16
"""Pixels by which images grow at a time."""


def build_optimizer(network: ImageNetwork, settings: OptimizerSettings) -> Optimizer:
    """An optimizer of what is not frozen, with two parameter groups: with weight decay, and without."""
    exempt = network.no_decay_names()
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if name not in exempt]
    spared = [parameter for name, parameter in trained if name in exempt]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.kind == "adamw":
        return AdamW(groups, lr=settings.learning_rate, betas=(settings.momentum, 0.999))
    return SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov)


def build_schedule(optimizer: Optimizer, settings: OptimizerSettings, epochs: int, steps_per_epoch: int) -> LRScheduler:
    """The learning rate of each step; its ``step()`` is called after each of the optimizer's."""
    return LambdaLR(optimizer, lambda step: rate_factor(step, settings, epochs, steps_per_epoch))


def rate_factor(step: int, settings: OptimizerSettings, epochs: int, steps_per_epoch: int) -> float:
    """What the peak learning rate is multiplied by in step 0, 1, … of the whole run.

    The warm-up climbs linearly and reaches the peak in its last step. Cosine decay then falls to zero, which the step
    after the last one would have; step decay divides every `step_epochs`, counted from the start of the run.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if settings.schedule == "step":
        return settings.step_factor ** -(step // (settings.step_epochs * steps_per_epoch))
    progress = (step - warmup) / max(1, epochs * steps_per_epoch - warmup)
    return (1 + math.cos(math.pi * min(1.0, progress))) / 2


def image_size(settings: Settings, epoch: int) -> int:
    """Side, in pixels, of the training images of an epoch, counted from 1; it grows linearly from first to last."""
    last, first = settings.data.image_size, settings.training.initial_image_size or settings.data.image_size
    growing = settings.training.resize_end_fraction * settings.training.epochs
    if epoch - 1 >= growing:
        return last
    return min(last, first + SIZE_STEP * round((last - first) * (epoch - 1) / growing / SIZE_STEP))
