"""One trial: the function that Ray Tune calls in a small process on the head node, and its reports to the scheduler."""

from __future__ import annotations

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
from pipeline.config.schema import Settings
from pipeline.launch import launcher
from pipeline.runs import history

RESOURCES = ray_internals.HEAD_NODE
"""Resources of a trial's own process: a place on the head node. Its workers reserve their CPUs themselves; if this
process reserved one, a few trials could hold all CPUs of a small cluster and wait forever for their workers'."""


@dataclass(frozen=True)
class Trials:
    """Everything that the trials of a search need."""

    runs: Mapping[str, Settings]
    """By name of the trial."""
    tags: Mapping[str, str]


def run_trial(config: dict[str, str], trials: Trials) -> None:
    """Trains the run named `config["name"]`. The scheduler may end this process after each epoch but the last.

    An interrupted trial first repeats its earlier reports, as the scheduler is a new one. The last epoch is reported
    when the run is complete, so that it cannot be stopped before.
    """
    check_packages()
    # Clusters that this program starts have these already; processes of an existing cluster do not.
    for name, value in launcher.TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    run = trials.runs[config["name"]]
    for record in history.read(Path(run.run.storage) / config["name"])[: run.training.epochs - 1]:
        tune.report(dict(record.metrics))
    outcome = launcher.train(
        run,
        in_search=True,
        tags=trials.tags,
        callbacks=[_ReportEpochs(before=run.training.epochs)],
        progress=False,
    )
    tune.report(dict(outcome.metrics))


class _ReportEpochs(TuneReportCallback):
    """Reports the metrics of the epochs before `before` to the scheduler. Runs in Ray Train's controller."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self._before = before

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if metrics[0]["epoch"] < self._before:
            super().after_report(run_context, metrics, checkpoint)
