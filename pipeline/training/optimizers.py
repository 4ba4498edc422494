"""Optimizers by name: to add one, write its builder and register it.

Those here are torch's fused ones: one pass over all parameters, and a few launches on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import SGD, AdamW, Optimizer

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from pipeline.config.schema import OptimizerSettings
from pipeline.models import ImageNetwork


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is built, and the memory that it takes."""

    build: Callable[[list[dict[str, Any]], OptimizerSettings], Optimizer]
    """Parameter groups and settings → optimizer."""
    state_tensors: int
    """Tensors of a parameter's size that it keeps for each parameter."""


OPTIMIZERS: Registry[OptimizerKind] = Registry("optimizer.kind")


def sgd(groups: list[dict[str, Any]], settings: OptimizerSettings) -> Optimizer:
    """Stochastic gradient descent with momentum."""
    momentum, nesterov = settings.momentum, settings.nesterov
    return SGD(groups, lr=settings.learning_rate, momentum=momentum, nesterov=nesterov, fused=True)


def adamw(groups: list[dict[str, Any]], settings: OptimizerSettings) -> Optimizer:
    """AdamW with β₁ = `momentum` and β₂ = 0.999."""
    return AdamW(groups, lr=settings.learning_rate, betas=(settings.momentum, 0.999), fused=True)


OPTIMIZERS.register("sgd", OptimizerKind(sgd, state_tensors=1))
OPTIMIZERS.register("adamw", OptimizerKind(adamw, state_tensors=2))


def build_optimizer(network: ImageNetwork, settings: OptimizerSettings) -> Optimizer:
    """The optimizer of all parameters that are not frozen, in two groups: with weight decay, and without.

    Raises:
        UserError: the registered builder raises an exception, or builds something else.
    """
    exempt = network.no_decay_names()
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [value for name, value in trained if name not in exempt], "weight_decay": settings.weight_decay},
        {"params": [value for name, value in trained if name in exempt], "weight_decay": 0.0},
    ]
    kind = OPTIMIZERS.find(settings.kind)
    with explain_faults(f"optimizer.kind: the builder of {settings.kind}"):
        optimizer = kind.build([group for group in groups if group["params"]], settings)
    if not isinstance(optimizer, Optimizer):
        raise UserError(
            f"optimizer.kind: the builder of {settings.kind} returns {type(optimizer).__name__}: return an Optimizer"
        )
    return optimizer
