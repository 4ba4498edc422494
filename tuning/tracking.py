"""A search in MLflow: a run of its own, with those of its trials below it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.common.errors import UserError
from pipeline.config.settings_io import flatten, to_yaml
from pipeline.runs import history, run_folder
from pipeline.runtime import system_info
from pipeline.tracking.mlflow_store import run as mlflow_run
from pipeline.tracking.mlflow_store.run import Status, Tracker
from pipeline.tracking.mlflow_store.store import Store
from tuning.config import SearchSettings
from tuning.search_folder import SearchFolder

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


def open_run(settings: SearchSettings, folder: SearchFolder, store: Store) -> Tracker:
    """The MLflow run of a search, new or that of an earlier session."""
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
def status(
    tracker: Tracker,
    folder: SearchFolder,
    store: Store,
    names: Iterable[str],
    settings: SearchSettings,
    report_line: ReportLine,
) -> Iterator[None]:
    """Ends the search's MLflow run as the body ends; before and after the body, those of the trials `names`."""
    end_trials(tracker.run_id, folder, store, names, settings, report_line)  # those of a process that was killed
    outcome: Status = "FAILED"
    try:
        yield
        outcome = "FINISHED"
    except KeyboardInterrupt:
        outcome = "KILLED"
        raise
    finally:
        end_trials(tracker.run_id, folder, store, names, settings, report_line)
        tracker.end(outcome)


def end_trials(
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
