"""One trial: the function that Ray Tune calls in a process of the cluster, and its reports to the scheduler.

A trial of one worker trains in that process, which has the CPUs and the share of a GPU that it needs, and serves
one trial after another. A trial of several workers starts them from there by Ray Train.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.train import Checkpoint
from ray.tune.integration.ray_train import TuneReportCallback

from data_prep.common import ray_internals
from data_prep.common.distribution import check_packages
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.launch import launcher, ray_train
from pipeline.runs import history
from tuning.config import SearchSettings
from tuning.pareto_halving import COST


def trains_here(settings: ClusterSettings) -> bool:
    """Whether a trial trains in its own process."""
    return settings.workers == 1


def resources(settings: SearchSettings) -> dict[str, float]:
    """Resources of a trial's own process.

    That of a trial of several workers has only a place on the head node. Its workers reserve their CPUs themselves; if
    this process reserved one, a few trials could hold all CPUs of a small cluster and wait forever for their workers'.
    """
    cluster = settings.train.cluster
    if not trains_here(cluster):
        return ray_internals.HEAD_NODE
    needed = ray_train.resources(cluster)
    return needed | {"GPU": settings.search.gpu_share} if cluster.gpu else needed


@dataclass(frozen=True)
class Trials:
    """Everything that the trials of a search need."""

    runs: Mapping[str, Settings]
    """By name of the trial."""
    costs: Mapping[str, float]
    """By name of the trial, for schedulers that weigh it."""
    tags: Mapping[str, str]


def configuration(name: str, run: Settings, cost: float) -> dict[str, Any]:
    """What the process of a trial gets that was asked for after the search began."""
    return {"name": name, "run": run.model_dump_json(), "cost": cost}


def run_trial(config: dict[str, Any], trials: Trials) -> None:
    """Trains the run named `config["name"]`. The scheduler may end this process after each epoch but the last.

    An interrupted trial first repeats its earlier reports, as the scheduler is a new one. The last epoch is reported
    when the run is complete, so that it cannot be stopped before.
    """
    check_packages()
    # Clusters that this program starts have these already; processes of an existing cluster do not.
    for name, value in launcher.TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "run" in config:
        run, cost = Settings.model_validate_json(config["run"]), {COST: config["cost"]}
    else:
        run, cost = trials.runs[config["name"]], {COST: trials.costs[config["name"]]}
    last = run.training.epochs
    for record in history.read(Path(run.run.storage) / config["name"])[: last - 1]:
        tune.report({**record.metrics, **cost})
    train = functools.partial(launcher.train, run, in_search=True, tags=trials.tags, progress=False)
    if trains_here(run.cluster):
        outcome = train(report_here=functools.partial(_report, before=last, cost=cost))
    else:
        outcome = train(callbacks=[_ReportEpochs(last, cost)])
    tune.report({**outcome.metrics, **cost})


def _report(metrics: dict[str, float], before: int, cost: dict[str, float]) -> None:
    """Reports the epochs before `before` to the scheduler, which may stop the trial: then this raises SystemExit."""
    if metrics["epoch"] < before:
        tune.report({**metrics, **cost})


class _ReportEpochs(TuneReportCallback):
    """Reports the metrics of the epochs before `before` to the scheduler. Runs in Ray Train's controller."""

    def __init__(self, before: int, cost: dict[str, float]) -> None:
        super().__init__()
        self._before, self._cost = before, cost

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if metrics[0]["epoch"] < self._before:
            super().after_report(run_context, [{**metrics[0], **self._cost}, *metrics[1:]], checkpoint)
