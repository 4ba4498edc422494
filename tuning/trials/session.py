"""Trains trials with Ray Tune, until each of them has ended.

The scheduler of Ray Tune decides which trials continue. What a search knows is in its own records, so that each call
is a new experiment for Tune, with the trials that are left.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read when Tune is imported: turns off its tables
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # and its log files

from ray import tune
from ray.tune.schedulers import TrialScheduler

from data_prep.common.errors import UserError, count_of
from data_prep.common.ray_cluster import Connection
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.launch import launcher, ray_cleanup, ray_train
from pipeline.runtime import system_info
from tuning.config import SearchSettings
from tuning.schedulers import build_scheduler
from tuning.search_folder import SearchFolder
from tuning.tracking import ReportLine
from tuning.trials import trial
from tuning.trials.recorder import TrialRecorder, name_of


@contextmanager
def cluster(settings: ClusterSettings, report_line: ReportLine) -> Iterator[Connection]:
    """The cluster of a search, which is left as it was found.

    Trials with workers of their own need its dashboard, through which Ray frees what a stopped one has reserved.

    Raises:
        UserError: it is unreachable, too small, or lacks the dashboard.
    """
    here = trial.trains_here(settings)
    with launcher.cluster_with_room(settings, dashboard=not here) as connection:
        if not here:
            ray_cleanup.check_state_service()
        if connection.own_cluster:  # all of it ends with the command: Tune need not wait for trials at a Ctrl-C
            os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        try:
            yield connection
        finally:
            os.environ.pop("TUNE_DISABLE_SIGINT_HANDLER", None)
            if not connection.own_cluster:
                _leave(here, report_line)


def _leave(here: bool, report_line: ReportLine) -> None:
    if here:
        ray_cleanup.leave()
        return
    for held in ray_cleanup.release():
        report_line(f"warning: the cluster still holds {held} of this search")


def run(
    runs: Mapping[str, Settings],
    settings: SearchSettings,
    folder: SearchFolder,
    costs: Mapping[str, float],
    report_line: ReportLine,
) -> None:
    """Trains `runs` on the cluster until each has ended; one whose process was lost is tried again after the others.

    Args:
        costs: of all trials of the search, by name.

    Raises:
        UserError: every further trial would fail.
        KeyboardInterrupt: the user stopped the search.
    """
    fitting = min(len(runs), trials_that_fit(settings), settings.search.max_concurrent or len(runs))
    report_line(f"{count_of(len(runs), 'trial')}, {fitting} at a time, in {folder.path}")
    # Trials that train in their own processes wait for these without harm, so that more start as a cluster grows.
    at_once = settings.search.max_concurrent if trial.trains_here(settings.train.cluster) else fitting
    losses = {name: folder.record(name).losses for name in runs}
    while waiting := {name: one for name, one in runs.items() if folder.record(name).status == "pending"}:
        recorder = TrialRecorder(folder, settings, report_line)
        scheduler = build_scheduler(settings, folder.records, costs)
        # Trials have other working directories, outside of the source code's repository.
        trials = trial.Trials(waiting, costs, system_info.git_state(Path.cwd()))
        _tuner(trials, settings, folder, scheduler, recorder, at_once).fit()
        if recorder.shared_failure is not None:
            raise UserError(
                f"{recorder.shared_failure}: correct this, and the same command resumes the search (--retry-failed "
                "tries the trials that have failed, too)"
            )
        left = {name: folder.record(name).losses for name in waiting if folder.record(name).status == "pending"}
        if any(count == losses[name] for name, count in left.items()):  # Tune returns early only if interrupted
            raise KeyboardInterrupt
        losses |= left


class _StopAll(tune.Stopper):
    """Ends the experiment when every further trial would fail."""

    def __init__(self, recorder: TrialRecorder) -> None:
        self._recorder = recorder

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._recorder.shared_failure is not None


def _tuner(
    trials: trial.Trials,
    settings: SearchSettings,
    folder: SearchFolder,
    scheduler: TrialScheduler,
    recorder: TrialRecorder,
    at_once: int | None,
) -> tune.Tuner:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the recorder reports errors in one line
    shutil.rmtree(folder.path / "tune", ignore_errors=True)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial.run_trial, trials=trials), trial.resources(settings)),
        param_space={"name": tune.grid_search(list(trials.runs))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=at_once,
            reuse_actors=trial.trains_here(settings.train.cluster),
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.path),
            verbose=0,
            callbacks=[recorder],
            stop=_StopAll(recorder),
        ),
    )


def trials_that_fit(settings: SearchSettings) -> int:
    """Number of trials that fit on the cluster at once. Of trials with several workers never more may start: two could
    wait for each other's CPUs."""
    cluster = settings.train.cluster
    if trial.trains_here(cluster):
        return ray_train.room(trial.resources(settings))
    return ray_train.room(ray_train.resources(cluster)) // cluster.workers
