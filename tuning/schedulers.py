"""Schedulers by name: which trials of a search continue after each epoch.

To add one, write a function that builds it from a search's settings, and register it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from data_prep.common.registry import Registry
from tuning.config import SearchSettings
from tuning.search_folder import Record

SCHEDULERS: Registry[Callable[[SearchSettings], TrialScheduler]] = Registry("search.scheduler")


def metric(settings: SearchSettings) -> str:
    """Name of the metric that decides, an accuracy on held-out training images: higher is better."""
    return f"holdout/{settings.search.error}"


def asha(settings: SearchSettings) -> TrialScheduler:
    """Asynchronous successive halving: at `grace_epochs`, and at each multiple of it by `reduction_factor`, a trial
    continues only if it is among the best 1/`reduction_factor` of those that have reached that epoch."""
    return ASHAScheduler(
        time_attr="epoch",
        metric=metric(settings),
        mode="max",
        max_t=settings.train.training.epochs,
        grace_period=settings.search.grace_epochs,
        reduction_factor=settings.search.reduction_factor,
    )


def none(settings: SearchSettings) -> TrialScheduler:
    """Every trial trains for all epochs."""
    return FIFOScheduler()


SCHEDULERS.register("asha", asha)
SCHEDULERS.register("none", none)


def build_scheduler(settings: SearchSettings, records: Iterable[tuple[str, Record]]) -> TrialScheduler:
    """The scheduler of a search, which knows the trials that have ended.

    Args:
        records: of the trials of an interrupted search, by name. Trials that have not ended report again by themselves.
    """
    scheduler = SCHEDULERS.find(settings.search.scheduler)(settings)
    for name, record in records:
        if record.status == "pending":
            continue
        past = SimpleNamespace(trial_id=f"past-{name}")
        scheduler.on_trial_add(None, past)
        for epoch, error in sorted(record.errors.items()):
            scheduler.on_trial_result(None, past, {"epoch": epoch, metric(settings): 1 - error})
    return scheduler
