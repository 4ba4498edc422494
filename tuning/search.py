"""A search: settings → trials on a Ray cluster, bad ones stopped early → table, frontier, picture.

The scheduler of Ray Tune decides which trials continue. Each trial is a run in a folder of its own, and a child of the
search's run in MLflow. The same command resumes an interrupted search and repeats no trial that has ended.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read when Tune is imported: turns off its tables
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # and its log files

import torch
from ray import tune

from data_prep.common.errors import UserError
from data_prep.format.manifest import Manifest, load_manifest
from pipeline import models
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.config.settings_io import flatten, to_yaml
from pipeline.launch import launcher, ray_train
from pipeline.runs import history, run_folder
from pipeline.runtime import system_info
from pipeline.tracking import mlflow_run
from pipeline.tracking.mlflow_run import Status, Store, Tracker
from pipeline.training import finetune
from tuning import frontier, ray_cleanup, search_folder, space, trial
from tuning.config import SearchSettings
from tuning.frontier import Row
from tuning.schedulers import build_scheduler, metric
from tuning.search_folder import SearchFolder
from tuning.trial_recorder import TrialRecorder

OUTCOME_TAG = "phasecollapse.outcome"
"""Tag of the MLflow runs of trials that were stopped early, with the epoch."""

_STATUS: dict[str, Status] = {
    "completed": "FINISHED",
    "stopped early": "FINISHED",
    "failed": "FAILED",
    "pending": "KILLED",
}
"""Status of a trial → status of its MLflow run."""

ReportLine = Callable[[str], None]


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
    data = load_manifest(Path(settings.train.data.path))
    store = mlflow_run.store_of(settings.train)
    with (
        search_folder.claim(settings, data, finetune.digest(settings.train)) as folder,
        ExitStack() as cluster_left_last,
    ):
        candidates = space.candidates(settings)
        runs = {one.name: space.trial_settings(settings, one, folder.path, store.uri) for one in candidates}
        for run in runs.values():
            launcher.check(run, data)
        waiting = [name for name in runs if folder.record(name).status == "pending"]
        if waiting:
            cluster_left_last.enter_context(launcher.cluster_with_room(settings.train.cluster, dashboard=True))
            ray_cleanup.check_state_service()
        folder.begin()  # a search that was refused leaves no folder
        tracker = _open_tracked_run(settings, folder, store)
        if waiting or not tracker.finished:
            with _status(tracker, folder, store, runs, settings, report_line):
                if waiting:
                    _try({name: runs[name] for name in waiting}, settings, folder, tracker.run_id, report_line)
                _write(_rows(runs, folder, data), settings, folder, tracker)
        return Report(folder.path, _rows(runs, folder, data), already_finished=not waiting)


def _try(
    runs: Mapping[str, Settings], settings: SearchSettings, folder: SearchFolder, parent: str, report_line: ReportLine
) -> None:
    """Trains `runs` with Ray Tune until each has ended, and frees the cluster."""
    at_once = min(len(runs), _room(settings.train.cluster), settings.search.max_concurrent or len(runs))
    report_line(f"{len(runs)} trials, {at_once} at a time, in {folder.path}")
    try:
        _tuner(runs, settings, folder, parent, at_once, report_line).fit()
    finally:
        for held in ray_cleanup.release():
            report_line(f"warning: the cluster still holds {held} of this search")
    if any(folder.record(name).status == "pending" for name in runs):  # Tune returns early only if it was interrupted
        raise KeyboardInterrupt


def _tuner(
    runs: Mapping[str, Settings],
    settings: SearchSettings,
    folder: SearchFolder,
    parent: str,
    at_once: int,
    report_line: ReportLine,
) -> tune.Tuner:
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # the recorder reports errors in one line, without traceback
    shutil.rmtree(folder.path / "tune", ignore_errors=True)
    # Trials have other working directories, outside of the source code's repository.
    trials = trial.Trials(runs, parent, system_info.git_state(Path.cwd()))
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trial.train, trials=trials), trial.RESOURCES),
        param_space={"name": tune.grid_search(list(runs))},
        tune_config=tune.TuneConfig(
            scheduler=build_scheduler(settings, folder.records.items()),
            max_concurrent_trials=at_once,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder.path),
            verbose=0,
            callbacks=[TrialRecorder(folder, metric(settings), settings.train.training.epochs, report_line)],
        ),
    )


def _name(ray_trial: tune.experiment.Trial) -> str:
    name: str = ray_trial.config["name"]
    return name


def _room(settings: ClusterSettings) -> int:
    """Number of trials that fit on the cluster at once; with one more, two could wait for each other's CPUs."""
    return ray_train.room(settings) // settings.workers


def _open_tracked_run(settings: SearchSettings, folder: SearchFolder, store: Store) -> Tracker:
    tracker = mlflow_run.open_run(
        store,
        settings.train.tracking.experiment,
        identity=folder.identity.id,
        name=settings.search.name,
        folder=folder.path,
        parameters=flatten(folder.identity.settings),
        tags=system_info.git_state(Path.cwd()),
    )
    if not tracker.finished:
        tracker.log_text(to_yaml(folder.identity.settings), "settings.yaml")
    return tracker


@contextmanager
def _status(
    tracker: Tracker,
    folder: SearchFolder,
    store: Store,
    names: Iterable[str],
    settings: SearchSettings,
    report_line: ReportLine,
) -> Iterator[None]:
    """Ends the search's MLflow run as the body ends; before and after the body, those of the trials `names`."""
    end_tracked_runs(tracker.run_id, folder, store, names, settings, report_line)  # those of a process that was killed
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        end_tracked_runs(tracker.run_id, folder, store, names, settings, report_line)
        tracker.end(status)


def end_tracked_runs(
    parent: str,
    folder: SearchFolder,
    store: Store,
    names: Iterable[str],
    settings: SearchSettings,
    report_line: ReportLine,
) -> None:
    """Ends the MLflow runs of trials that are not running with their status: killed processes could not."""
    try:
        for name in names:
            path, record = folder.path / name, folder.record(name)
            run = run_folder.read_identity(path)
            if run is None:
                continue  # not begun
            stopped = record.status == "stopped early"
            tracker = mlflow_run.open_run(
                store,
                settings.train.tracking.experiment,
                identity=run.id,
                name=name,
                folder=path,
                parameters={},
                tags={OUTCOME_TAG: f"stopped early at epoch {record.epochs}"} if stopped else {},
                parent_run_id=parent,
            )
            if not tracker.finished:
                tracker.follow(history.read(path))
                tracker.end(_STATUS[record.status])
    except UserError as error:
        report_line(f"warning: {error}")


def _rows(runs: Mapping[str, Settings], folder: SearchFolder, data: Manifest) -> list[Row]:
    """One row for each trial, started or not."""
    rows = []
    for name, run in runs.items():
        with torch.device("meta"):
            network = models.build(run.model, len(data.classes), run.data.image_size)
        record = folder.record(name)
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


def _write(rows: list[Row], settings: SearchSettings, folder: SearchFolder, tracker: Tracker) -> None:
    """Writes table and picture into the search's folder, and adds them to the artifacts of its MLflow run."""
    (folder.path / "table.md").write_text(frontier.markdown(rows), encoding="utf-8")
    (folder.path / "table.csv").write_text(frontier.comma_separated(rows), encoding="utf-8")
    frontier.picture(rows, folder.path / "frontier.png", settings.search.error)
    for file in ("table.md", "table.csv", "frontier.png"):
        tracker.log_file(folder.path / file)
