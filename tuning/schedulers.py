"""Schedulers by name: which trials of a search continue after each epoch.

To add one, write a function that builds it from a search's settings, and register it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from tuning.config import SearchSettings
from tuning.pareto_halving import COST, ParetoHalving, rungs
from tuning.search_folder import Record

SCHEDULERS: Registry[Callable[[SearchSettings], TrialScheduler]] = Registry("search.scheduler")


def metric(settings: SearchSettings) -> str:
    """Name of the metric that decides, an accuracy on held-out training images: higher is better."""
    return f"holdout/{settings.search.error}"


def asha(settings: SearchSettings) -> TrialScheduler:
    """Asynchronous successive halving: at `grace_epochs`, and at each multiple of it by `reduction_factor`, a trial
    continues only if it is among the best 1/`reduction_factor` of those that have reached that epoch."""
    return _halving(settings, brackets=1)


def hyperband(settings: SearchSettings) -> TrialScheduler:
    """asha with several brackets: some trials have their first rung at `grace_epochs`, others only at a later one, so
    that networks that learn slowly have their chance."""
    search = settings.search
    return _halving(settings, len(rungs(search.grace_epochs, search.reduction_factor, settings.train.training.epochs)))


def _halving(settings: SearchSettings, brackets: int) -> TrialScheduler:
    return ASHAScheduler(
        time_attr="epoch",
        metric=metric(settings),
        mode="max",
        max_t=settings.train.training.epochs,
        grace_period=settings.search.grace_epochs,
        reduction_factor=settings.search.reduction_factor,
        brackets=brackets,
    )


def median(settings: SearchSettings) -> TrialScheduler:
    """From `grace_epochs` on, a trial continues if its best accuracy is not below the median of what the others had
    reached on average by then."""
    return MedianStoppingRule(
        time_attr="epoch", metric=metric(settings), mode="max", grace_period=settings.search.grace_epochs
    )


def pareto_halving(settings: SearchSettings) -> TrialScheduler:
    """asha by error and `search.cost` together, see :mod:`tuning.pareto_halving`: cheap networks are compared with
    cheap ones."""
    search = settings.search
    return ParetoHalving(metric(settings), search.grace_epochs, search.reduction_factor, settings.train.training.epochs)


def none(settings: SearchSettings) -> TrialScheduler:
    """Every trial trains for all epochs."""
    return FIFOScheduler()


SCHEDULERS.register("pareto_halving", pareto_halving)
SCHEDULERS.register("asha", asha)
SCHEDULERS.register("hyperband", hyperband)
SCHEDULERS.register("median", median)
SCHEDULERS.register("none", none)


def build_scheduler(
    settings: SearchSettings, records: Mapping[str, Record], costs: Mapping[str, float]
) -> TrialScheduler:
    """The scheduler of a search, which knows the trials that have ended.

    Args:
        records: of the trials of an interrupted search, by name. Trials that have not ended report again by themselves.
        costs: of all trials, by name, see `search.cost`.

    Raises:
        UserError: a scheduler from elsewhere cannot be built, or needs more of a trial that has ended than its
            results.
    """
    chosen = settings.search.scheduler
    with explain_faults(f"search.scheduler: the builder of {chosen}"):
        scheduler = SCHEDULERS.find(chosen)(settings)
    if not isinstance(scheduler, TrialScheduler):
        raise UserError(
            f"search.scheduler: the builder of {chosen} returns {type(scheduler).__name__}: return a TrialScheduler"
        )
    for name, record in records.items():
        if record.status != "pending" and name in costs:  # else it is no trial of this search any more
            try:
                _replay(scheduler, name, record, metric(settings), costs[name])
            except Exception as error:  # whatever the scheduler misses
                others = " or ".join(one for one in ("asha", "none") if one != chosen)
                raise UserError(
                    f"search.scheduler: {chosen} cannot resume a search, as it needs more of a trial that has ended "
                    f"than its results ({type(error).__name__}: {error}): search again under another search.name, or "
                    f"with search.scheduler={others}"
                ) from None
    return scheduler


def _replay(scheduler: TrialScheduler, name: str, record: Record, metric: str, cost: float) -> None:
    """Gives the scheduler the results of a trial that has ended, in the order of Tune's own calls."""
    past = Trial(name, trial_id=f"past-{name}", stub=True)
    scheduler.on_trial_add(_NO_TRIALS, past)
    results = [
        {"epoch": epoch, TRAINING_ITERATION: epoch, metric: 1 - error, COST: cost}
        for epoch, error in sorted(record.errors.items())
    ]
    for result in results:
        scheduler.on_trial_result(_NO_TRIALS, past, result)
    if record.status == "failed":
        scheduler.on_trial_error(_NO_TRIALS, past)
    elif results:
        scheduler.on_trial_complete(_NO_TRIALS, past, results[-1])


class _NoTrials:
    """What a scheduler sees of Tune's controller in a replay: no trial can be paused, stopped or preferred."""

    def get_trials(self) -> list[Trial]:
        return []

    def get_live_trials(self) -> list[Trial]:
        return []


_NO_TRIALS: Any = _NoTrials()
