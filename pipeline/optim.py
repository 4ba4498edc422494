"""The optimizer and its learning rate, step by step."""

from __future__ import annotations

import math

from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pipeline.models import ImageNetwork
from pipeline.settings import OptimizerSettings


def build_optimizer(network: ImageNetwork, settings: OptimizerSettings) -> SGD:
    """Stochastic gradient descent on what is not frozen, with two parameter groups: with weight decay, and without."""
    exempt = network.no_decay_names()
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if name not in exempt]
    spared = [parameter for name, parameter in trained if name in exempt]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return SGD(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
    )


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
