"""A search in MLflow: a run of its own, with those of its trials below it.

This process delivers the search and all its trials; the processes of trials only write into their folders.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from data_prep.common.files import explain_os_errors
from pipeline.config.settings_io import flatten, to_yaml
from pipeline.launch.tracked_run import provenance
from pipeline.runs import history, paths
from pipeline.runs.history import StepRecord
from pipeline.runs.journal import JournalWriter
from pipeline.tracking import content, ledger
from pipeline.tracking.delivery import Delivery, undelivered
from pipeline.tracking.ledger import Status, Target
from pipeline.tracking.mlflow_store.errors import Origin
from pipeline.tracking.mlflow_store.store import Store
from tuning.config import SearchSettings
from tuning.results import files
from tuning.search_folder import SearchFolder

OUTCOME_TAG, BEST_TAG = "phasecollapse.outcome", "phasecollapse.best_trial"
"""Tags of trials that were stopped early, with the epoch, and of the search: the name of its best trial."""

_STATUS: dict[str, Status] = {
    "completed": "FINISHED",
    "stopped early": "FINISHED",
    "failed": "FAILED",
    "pending": "KILLED",
}
"""Status of a trial → status of its MLflow run."""

ReportLine = Callable[[str], None]


def begin(settings: SearchSettings, folder: SearchFolder, store: Store, *, has_work: bool) -> None:
    """Notes what the store is to have of a search that begins, resumes, or has finished.

    Args:
        has_work: a trial will be trained; a finished search that is enlarged then is under way again.

    Raises:
        UserError: the folder cannot be written.
    """
    original = folder.identity.settings
    with explain_os_errors(folder.path):
        before = ledger.read_target(folder.path)
        finished = before if before and before.status == "FINISHED" and not has_work else None
        target = Target(
            uri=store.uri,
            experiment=settings.train.tracking.experiment,
            identity=folder.identity.id,
            name=settings.search.name,
            started_at=before.started_at if before else time.time(),
            parameters={key: str(value) for key, value in flatten(original).items()},
            tags=finished.tags if finished else provenance(),
            settings=to_yaml(original),
            artifacts={name: name for name in files.FILES},
            status="FINISHED" if finished else "RUNNING",
            ended_at=finished.ended_at if finished else None,
        )
        if target != before:
            ledger.write_target(folder.path, target)


@contextmanager
def delivered(
    folder: SearchFolder, names: Iterable[str], origin: Origin, report_line: ReportLine
) -> Iterator[Callable[[str], None]]:
    """Delivers the search and its trials `names` during the body, and what earlier commands have left beside it; notes
    before and after the body how trials that are not running have ended, and after it how the search has.

    Returns:
        Called with the name of a trial, it delivers this one, too, if it does not yet.
    """
    names = list(names)
    end_trials(folder, names)  # those of a process that was killed
    folders = [folder.path, *(folder.path / name for name in names)]
    backlog = functools.partial(undelivered, folder.path.parent, besides=[folder.path])
    delivery = Delivery(folders, backlog, report_line, origin)

    def add(name: str) -> None:
        if name not in names:
            names.append(name)
            delivery.add(folder.path / name)

    with delivery.running():
        outcome: Status = "FAILED"
        try:
            yield add
            outcome = "FINISHED"
        except KeyboardInterrupt:
            outcome = "KILLED"
            raise
        finally:
            end_trials(folder, names)
            note_best(folder)
            best = folder.best()
            with suppress(OSError):  # the same command notes it again
                ledger.end(folder.path, outcome, time.time(), {BEST_TAG: best} if best else {}, models=False)


def end_trials(folder: SearchFolder, names: Iterable[str]) -> None:
    """Notes how trials that are not running have ended: killed processes could not."""
    for name in names:
        path, record = folder.path / name, folder.record(name)
        with suppress(OSError):  # the same command notes it again
            target = ledger.read_target(path)
            if target is None:
                continue  # not begun
            how, stopped = _STATUS[record.status], record.status == "stopped early"
            if target.status != how or stopped:
                tags = {OUTCOME_TAG: f"stopped early at epoch {record.epochs}"} if stopped else {}
                ended = target.ended_at or time.time()
                ledger.end(path, how, ended, tags, models=target.models and how == "FINISHED")


def note_best(folder: SearchFolder) -> None:
    """Appends the metrics of the best trial so far to the journal of the search, if they have changed."""
    best = folder.best()
    if best is None:
        return
    with suppress(OSError, ValueError):  # the next time
        points = content.epoch_points(history.read(folder.path / best))
        if not points:
            return
        sources = [*points, *content.network_points(folder.path / best)]
        metrics = {key: value for point in sources for key, value in point.metrics.items()}
        file = folder.path / paths.BEST
        known = history.step_reader(file).read()
        if not known or known[-1].metrics != metrics:
            journal = JournalWriter(file)
            journal.add(history.to_line(StepRecord(_steps(folder), time.time(), metrics)))
            journal.flush()


def _steps(folder: SearchFolder) -> int:
    """Training steps of all trials so far: MLflow shows the value with the largest step."""
    histories = [content.epoch_points(history.read(folder.path / name)) for name in folder.records]
    return sum(points[-1].step for points in histories if points)
