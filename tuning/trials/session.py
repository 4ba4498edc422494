"""Trains trials with Ray Tune, until each of them has ended.

The scheduler of Ray Tune decides which trials continue. What a search knows is in its own records, so that each call
is a new experiment for Tune, with the trials that are left.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from tuning.trials.feeder import Feeder
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


@dataclass(frozen=True)
class Further:
    """Trials that a searcher that learns adds to those that wait."""

    find: Callable[[], str | None]
    """Adds one to the runs, costs and records of the search, and returns its name; None if there is none."""
    expected: int | None
    """How many there will be; None: without end."""
    last: Collection[str] = ()
    """Names of trials that wait until there is none."""


def run(
    runs: Mapping[str, Settings],
    settings: SearchSettings,
    folder: SearchFolder,
    costs: Mapping[str, float],
    report_line: ReportLine,
    further: Further | None = None,
    recorder: Callable[..., TrialRecorder] = TrialRecorder,
) -> None:
    """Trains `runs` on the cluster until each has ended; one whose process was lost is tried again after the others.

    Args:
        runs: those that have ended are left out.
        costs: of all trials of the search, by name.

    Raises:
        UserError: every further trial would fail.
        KeyboardInterrupt: the user stopped the search.
    """
    waiting = _waiting(runs, folder)
    count = len(waiting) + (further.expected or 0 if further else 0)
    fitting = min(trials_that_fit(settings), count or 1, settings.search.max_concurrent or count or 1)
    report_line(f"{count_of(count, 'trial')}, {fitting} at a time, in {folder.path}")
    losses = {name: folder.record(name).losses for name in waiting}
    feeder: Feeder | None = None
    while waiting or (further and feeder is None):
        record = recorder(folder, settings, report_line)
        scheduler = build_scheduler(settings, folder.records, costs)
        # Trials have other working directories, outside of the source code's repository.
        trials = trial.Trials(waiting, costs, system_info.git_state(Path.cwd()))
        feeder = _feeder(waiting, runs, costs, settings, further) if further else None
        _tuner(trials, settings, folder, scheduler, record, fitting, feeder).fit()
        if record.shared_failure is not None:
            raise UserError(
                f"{record.shared_failure}: correct this, and the same command resumes the search (--retry-failed "
                "tries the trials that have failed, too)"
            )
        if feeder and feeder.fault:
            raise feeder.fault
        waiting = _waiting(runs, folder)
        left = {name: folder.record(name).losses for name in waiting}
        # Tune returns early only if interrupted.
        if (feeder and not feeder.exhausted) or any(count == losses.get(name, 0) for name, count in left.items()):
            raise KeyboardInterrupt
        losses |= left


def _waiting(runs: Mapping[str, Settings], folder: SearchFolder) -> dict[str, Settings]:
    return {name: one for name, one in runs.items() if folder.record(name).status == "pending"}


def _feeder(
    waiting: Mapping[str, Settings],
    runs: Mapping[str, Settings],
    costs: Mapping[str, float],
    settings: SearchSettings,
    further: Further,
) -> Feeder:
    def configuration(name: str) -> dict[str, Any]:
        return trial.configuration(name, runs[name], costs[name])

    def more() -> dict[str, Any] | None:
        name = further.find()
        return None if name is None else configuration(name)

    def room() -> int:
        fitting = trials_that_fit(settings)  # more, as a cluster grows
        return min(fitting, settings.search.max_concurrent or fitting)

    first = [name for name in waiting if name not in further.last]
    last = [name for name in waiting if name in further.last]
    return Feeder(map(configuration, first), more, map(configuration, last), room)


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
    fitting: int,
    feeder: Feeder | None,
) -> tune.Tuner:
    # Trials that train in their own processes wait for these without harm, so that more start as a cluster grows.
    at_once = settings.search.max_concurrent if trial.trains_here(settings.train.cluster) else fitting
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # the recorder reports errors in one line
    shutil.rmtree(folder.path / "tune", ignore_errors=True)
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial.run_trial, trials=trials), trial.resources(settings)),
        param_space={} if feeder else {"name": tune.grid_search(list(trials.runs))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=feeder,
            num_samples=-1 if feeder else 1,
            max_concurrent_trials=None if feeder else at_once,
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


def trials_that_fit(settings: SearchSettings, machine: Mapping[str, float] | None = None) -> int:
    """Number of trials that fit on the cluster at once. Of trials with several workers never more may start: two could
    wait for each other's CPUs.

    Args:
        machine: resources of the only machine of a cluster that is not running yet.
    """
    cluster = settings.train.cluster
    here = trial.trains_here(cluster)
    needed = trial.resources(settings) if here else ray_train.resources(cluster)
    room = ray_train.room(needed) if machine is None else ray_train.room_on(machine, needed)
    return room if here else room // cluster.workers
