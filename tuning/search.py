"""A search: settings → trials on a Ray cluster, bad ones stopped early → table, frontier, picture.

The scheduler of Ray Tune decides which trials continue. Each trial is a run in a folder of its own, and a child of the
search's run in MLflow. The same command resumes an interrupted search and repeats no trial that has ended.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read when Tune is imported: turns off its tables
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # and its log files

import torch
from ray import tune

from data_prep.common.progress import format_duration
from data_prep.format.manifest import Manifest, load_manifest
from pipeline import models
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.launch import initial_weights, launcher, ray_cleanup, ray_train, run_plan
from pipeline.runtime import system_info
from pipeline.tracking.mlflow_store import addresses
from pipeline.tracking.mlflow_store.store import Store, store_of
from pipeline.tracking.mlflow_store.store import check as check_store
from pipeline.training import finetune
from pipeline.training.dataloader import count_images
from pipeline.training.setup import memory_errors
from tuning import frontier, search_folder, space, tracking, trial
from tuning.config import SearchSettings
from tuning.frontier import Row
from tuning.schedulers import build_scheduler, metric
from tuning.search_folder import Record, SearchFolder
from tuning.space import Candidate
from tuning.tracking import ReportLine
from tuning.trial_recorder import TrialRecorder, name_of


@dataclass(frozen=True)
class Report:
    """The result of a search."""

    folder: Path
    rows: list[Row]
    already_finished: bool
    """Every trial had ended before."""


def search(settings: SearchSettings, report_line: ReportLine = print) -> Report:
    """Trains every candidate of `settings` that has not ended yet.

    Args:
        report_line: called with one line for each event.

    Raises:
        UserError: a setting is wrong, the folder cannot be used, or the cluster is too small.
        KeyboardInterrupt: the user stopped the search; its resources are free, and the same call resumes it.
    """
    settings = settings.model_copy(update={"train": addresses.choose(settings.train)})
    data = load_manifest(Path(settings.train.data.path))
    store = store_of(settings.train)
    with (
        initial_weights.fetched(settings.train, search_folder.path_of(settings)) as train,
        ExitStack() as cluster_left_last,
    ):
        folder = cluster_left_last.enter_context(search_folder.claim(settings, data, finetune.digest(train)))
        candidates = space.candidates(settings)
        runs = _runs(settings, candidates, train, store)
        for run in runs.values():
            launcher.check(run, data)
        waiting = [name for name in runs if folder.record(name).status == "pending"]
        if waiting:
            connection = cluster_left_last.enter_context(
                launcher.cluster_with_room(settings.train.cluster, dashboard=True)
            )
            ray_cleanup.check_state_service()
            if connection.own_cluster:  # all of it ends with the command: Tune need not wait for trials at a Ctrl-C
                os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
            else:
                cluster_left_last.callback(_release, report_line)
        check_store(store)
        folder.begin()  # a search that was refused leaves no folder
        runs = _runs(settings, candidates, initial_weights.keep(settings.train, train, folder.path), store)
        folder.expect(runs)
        tracking.begin(settings, folder, store)
        with tracking.delivered(folder, runs, report_line):
            if waiting:
                _try({name: runs[name] for name in waiting}, settings, folder, report_line)
            if waiting or not all((folder.path / name).exists() for name in frontier.FILES):
                frontier.write(_rows(runs, folder.records, data), folder.path, settings.search.error)
        return Report(folder.path, _rows(runs, folder.records, data), already_finished=not waiting)


@dataclass(frozen=True)
class SearchPlan:
    """What a search will do."""

    networks: list[Row]
    """One for each trial that has not ended."""
    ended: int
    """Trials that have ended already."""
    epochs: int
    images_per_epoch: int
    """Images that a trial trains on in an epoch."""
    workers: int
    """Of each trial."""
    largest: Settings | None
    """The run of the trial with the most multiply-adds; None if every trial has ended."""

    def __str__(self) -> str:
        work = 3 * self.epochs * self.images_per_epoch * sum(row.multiply_adds for row in self.networks)
        return "\n".join(
            [
                *frontier.markdown(self.networks).splitlines(),
                f"trials       {len(self.networks)} to train, {self.ended} have ended; {self.workers} workers each",
                f"epochs       at most {self.epochs} of {self.images_per_epoch:,} images each; search.scheduler stops "
                "some earlier",
                f"work         at most {work:.2e} multiply-adds, forward and backward",
            ]
        )


def dry_run(settings: SearchSettings) -> SearchPlan:
    """The plan of a search, after every check that needs no worker; writes nothing.

    The size of the cluster is checked only if it is running already (`cluster.address`).

    Raises:
        UserError: names the setting that does not fit.
    """
    data = load_manifest(Path(settings.train.data.path))
    with initial_weights.fetched(settings.train, search_folder.path_of(settings)) as train:
        records = search_folder.check(settings, data, finetune.digest(train))
        runs = _runs(settings, space.candidates(settings), train, store_of(settings.train))
        for run in runs.values():
            launcher.check(run, data)
    build_scheduler(settings, records.items())
    waiting = {name: run for name, run in runs.items() if records.get(name, Record()).status == "pending"}
    cluster = settings.train.cluster
    if waiting and (cluster.address or os.environ.get("RAY_ADDRESS")):
        with launcher.cluster_with_room(cluster):
            pass
    images, _ = count_images(next(iter(runs.values())).data, data, settings.train.training.seed)
    networks = _rows(waiting, records, data)
    return SearchPlan(
        networks,
        ended=len(runs) - len(waiting),
        epochs=settings.train.training.epochs,
        images_per_epoch=images,
        workers=cluster.workers,
        largest=waiting[max(networks, key=lambda row: row.multiply_adds).name] if networks else None,
    )


def _runs(
    settings: SearchSettings, candidates: Sequence[Candidate], train: Settings, store: Store
) -> dict[str, Settings]:
    """The run of each trial, by its name, with the initial weights of `train`."""
    local, folder = settings.model_copy(update={"train": train}), search_folder.path_of(settings)
    return {one.name: space.trial_settings(local, one, folder, store.uri) for one in candidates}


def describe_time(plan: SearchPlan) -> str:
    """The last line of a plan: how long the trials take, estimated from a few steps of the largest network here.

    Raises:
        UserError: memory is too small for it.
    """
    run = plan.largest
    if run is None:
        return "time         none, as every trial has ended"
    if run.cluster.gpu and not torch.cuda.is_available():
        return "time         not measured: train.cluster.gpu is true, and torch sees no GPU on this machine"
    with memory_errors(run):
        speed = run_plan.measure_speed(run, run_plan.plan(run, load_manifest(Path(run.data.path))))
    costs = [row.multiply_adds for row in plan.networks]
    longest, everything = (
        format_duration(max(1.0, speed.seconds * cost / max(costs))) for cost in (max(costs), sum(costs))
    )
    return (
        f"time         at most {longest} for {run.run.name}, the largest, and {everything} for all trials one after "
        f"another (a few steps were measured on this machine, {speed.images_per_step} images each)"
    )


def _try(runs: Mapping[str, Settings], settings: SearchSettings, folder: SearchFolder, report_line: ReportLine) -> None:
    """Trains `runs` with Ray Tune until each has ended, and frees the cluster."""
    at_once = min(len(runs), _trials_that_fit(settings.train.cluster), settings.search.max_concurrent or len(runs))
    report_line(f"{len(runs)} trials, {at_once} at a time, in {folder.path}")
    _tuner(runs, settings, folder, at_once, report_line).fit()
    if any(folder.record(name).status == "pending" for name in runs):  # Tune returns early only if it was interrupted
        raise KeyboardInterrupt


def _release(report_line: ReportLine) -> None:
    for held in ray_cleanup.release():
        report_line(f"warning: the cluster still holds {held} of this search")


def _tuner(
    runs: Mapping[str, Settings],
    settings: SearchSettings,
    folder: SearchFolder,
    at_once: int,
    report_line: ReportLine,
) -> tune.Tuner:
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # the recorder reports errors in one line, without traceback
    shutil.rmtree(folder.path / "tune", ignore_errors=True)
    # Trials have other working directories, outside of the source code's repository.
    trials = trial.Trials(runs, system_info.git_state(Path.cwd()))
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial.run_trial, trials=trials), trial.RESOURCES),
        param_space={"name": tune.grid_search(list(runs))},
        tune_config=tune.TuneConfig(
            scheduler=build_scheduler(settings, folder.records.items()),
            max_concurrent_trials=at_once,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.path),
            verbose=0,
            callbacks=[TrialRecorder(folder, metric(settings), settings.train.training.epochs, report_line)],
        ),
    )


def _trials_that_fit(settings: ClusterSettings) -> int:
    """Number of trials that fit on the cluster at once; with one more, two could wait for each other's CPUs."""
    return ray_train.room(settings) // settings.workers


def _rows(runs: Mapping[str, Settings], records: Mapping[str, Record], data: Manifest) -> list[Row]:
    """One row for each trial, started or not."""
    rows = []
    for name, run in runs.items():
        with torch.device("meta"):
            network = models.build(run.model, len(data.classes), run.data.image_size)
        record = records.get(name, Record())
        rows.append(
            Row(
                name,
                run.model.channels,  # type: ignore[union-attr]
                models.parameters(network),
                network.multiply_adds(),
                record.error,
                record.epochs,
                record.status,
                record.reason,
            )
        )
    return rows
