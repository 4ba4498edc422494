"""MLflow: one tracked run per run, found by a tag when the run is resumed.

MLflow gets copies of the records in the run's folder, each with the time at which it was written. MLflow stores a
metric once per (name, step, time, value), so a record may be sent twice, and what a server has missed is sent later. An
MLflow server that fails never stops a training in progress.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault(
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"
)  # otherwise it prints two lines at the end of runs

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from data_prep.common import storage
from data_prep.common.errors import UserError
from pipeline.config.schema import Settings
from pipeline.runs import history
from pipeline.tracking import mlflow_errors

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

IDENTITY_TAG, FOLDER_TAG, PARENT_TAG = "phasecollapse.id", "phasecollapse.folder", "mlflow.parentRunId"
MODEL_ARTIFACT = "model"
"""Folder of the final checkpoint among the artifacts of a run."""
METRICS_IN_A_BATCH = 1000  # MLflow refuses more

_Problem = (MlflowException, SQLAlchemyError, OSError)  # requests' exceptions are OSErrors


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store."""

    uri: str
    """URI of a database, such as ``sqlite:////data/runs/mlflow.db``, or of a tracking server."""

    def __str__(self) -> str:
        """The URI without a password, for messages."""
        return storage.redact(self.uri)

    @property
    def database(self) -> Path | None:
        """The file of an SQLite store; None for other stores."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

    @property
    def artifacts(self) -> str | None:
        """Artifact location of new experiments: beside an SQLite database; None if a server chooses."""
        return (self.database.parent / "artifacts").as_uri() if self.database else None


def store_of(settings: Settings) -> Store:
    """The store of `tracking.uri`; by default an SQLite database inside `run.storage`."""
    return Store(settings.tracking.uri) if settings.tracking.uri else default_store(Path(settings.run.storage))


def default_store(storage: Path) -> Store:
    """The default store of the runs in the folder `storage`."""
    return Store(f"sqlite:///{storage.absolute() / 'mlflow.db'}")


def open_run(
    store: Store,
    experiment: str,
    *,
    identity: str,
    name: str,
    folder: Path,
    parameters: Mapping[str, object],
    tags: Mapping[str, str],
    parent_run_id: str | None = None,
    complete: bool = True,
) -> Tracker:
    """Finds or creates the tracked run with this identity, and sets it to running unless it has finished.

    Args:
        store: to track the run in.
        experiment: its name; created if it does not exist.
        identity: unique value of a tag by which the run is found.
        name: of the run, if it is created.
        folder: of the run; set as a tag.
        parameters: logged if the run does not have them yet; MLflow does not change a parameter.
        tags: further tags.
        parent_run_id: MLflow run to nest this one under.
        complete: whether every epoch is trained; otherwise a tracked run that has finished runs again.

    Raises:
        UserError: the store is unreachable, or refuses.
    """
    if store.uri.startswith("http"):  # by default a call to an unreachable server blocks for four minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    with _in_sentences(store), _locked(store):
        client = _client(store)
        place = _find_or_create_experiment(client, store, experiment)
        found = client.search_runs([place.experiment_id], f"tags.`{IDENTITY_TAG}` = '{identity}'", max_results=1)
        run: Run = found[0] if found else client.create_run(place.experiment_id, run_name=name)
        run_id = run.info.run_id
        every_tag = {**tags, IDENTITY_TAG: identity, FOLDER_TAG: str(folder)}
        if parent_run_id:
            every_tag[PARENT_TAG] = parent_run_id
        finished = run.info.status == "FINISHED" and complete
        missing = [Param(key, str(value)) for key, value in parameters.items() if key not in run.data.params]
        client.log_batch(run_id, params=missing, tags=[RunTag(key, value) for key, value in every_tag.items()])
        if not finished:
            client.update_run(run_id, status="RUNNING")
    return Tracker(client, store, run_id, finished)


class Tracker:
    """One run in MLflow. If the store is unreachable, its methods log a warning and return False."""

    def __init__(self, client: MlflowClient, store: Store, run_id: str, finished: bool) -> None:
        self._client = client
        self._store = store
        self.run_id = run_id
        self.finished = finished
        """Whether the run had finished before it was opened."""
        self._sent = (0, 0)  # epochs, steps
        self._unreachable = False

    def follow(self, epochs: Sequence[history.EpochRecord], steps: Sequence[history.StepRecord] = ()) -> bool:
        """Sends the records that this tracker has not sent yet."""
        points = [
            *(_Point(record.metrics, record.finished_at, record.epoch) for record in epochs[self._sent[0] :]),
            *(_Point(record.metrics, record.recorded_at, record.step) for record in steps[self._sent[1] :]),
        ]
        if not points:
            return True
        there = (len(epochs), len(steps))
        with self._warning():
            _send(self._client, self.run_id, points)
            self._sent = there
        return self._sent == there

    def tag(self, tags: Mapping[str, str]) -> bool:
        """Sets tags of the run."""
        with self._warning():
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        return not self._unreachable

    def log_text(self, text: str, file: str) -> bool:
        """Stores `text` as an artifact named `file`."""
        with self._warning():
            self._client.log_text(self.run_id, text, file)
        return not self._unreachable

    def log_file(self, path: Path, folder: str | None = None) -> bool:
        """Stores a file, or all files of a folder, as artifacts."""
        with self._warning():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder)
            else:
                self._client.log_artifact(self.run_id, str(path), folder)
        return not self._unreachable

    def end(self, status: Status) -> bool:
        """Sets the final status of the run; resuming it sets it to running again."""
        with self._warning():
            self._client.set_terminated(self.run_id, status)
        return not self._unreachable

    @contextmanager
    def _warning(self) -> Iterator[None]:
        """Logs a warning instead of raising, once until the store answers again."""
        try:
            yield
            self._unreachable = False
        except _Problem as error:
            if not self._unreachable:
                logger.warning(
                    "%s: training continues, and the missing metrics are sent when it answers again, or when the same "
                    "command is rerun",
                    mlflow_errors.explain(error, str(self._store), self._store.database).problem,
                )
            self._unreachable = True


@contextmanager
def checkpoint_of(source: str, storage: Path, uri: str | None = None) -> Iterator[Path]:
    """Yields the folder of a run or a checkpoint, downloaded from MLflow if `source` is models:/… or runs:/….

    Args:
        source: a folder, models:/NAME, models:/NAME/VERSION, runs:/ID or runs:/ID/PATH.
        storage: folder of the runs, which holds the default store.
        uri: another store.

    Raises:
        UserError: MLflow has no such model or run, or is unreachable.
    """
    if not source.startswith(("models:/", "runs:/")):
        yield Path(source)
        return
    store = Store(uri) if uri else default_store(storage)
    with tempfile.TemporaryDirectory(prefix="phasecollapse-") as scratch:
        with _in_sentences(store, source):
            client = _client(store)
            kind, _, rest = source.partition(":/")
            if kind == "models":
                name, _, version = rest.strip("/").partition("/")
                found = (
                    client.get_model_version(name, version)
                    if version
                    else max(client.search_model_versions(f"name='{name}'"), key=lambda one: int(one.version))
                )
                artifacts = found.source
            else:
                run, _, path = rest.strip("/").partition("/")
                artifacts = f"{client.get_run(run).info.artifact_uri}/{path or MODEL_ARTIFACT}"
            fetched = download_artifacts(artifact_uri=artifacts, dst_path=scratch, tracking_uri=store.uri)
        yield Path(fetched)


def newest_experiment(store: Store) -> str | None:
    """Id of the most recently updated experiment; None if there is none except MLflow's `Default`.

    Raises:
        UserError: the store is unreachable.
    """
    with _in_sentences(store):
        found = _client(store).search_experiments(order_by=["last_update_time DESC"])
    return next((experiment.experiment_id for experiment in found if experiment.name != "Default"), None)


def _client(store: Store) -> MlflowClient:
    for noisy in (
        "mlflow",
        "alembic",
        "urllib3",
    ):  # they log created tables, and tracebacks of errors that are reported here
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if store.database and store.database.exists():
        store.database.open("rb").close()  # MLflow would try for minutes what fails here at once
    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def _find_or_create_experiment(client: MlflowClient, store: Store, name: str) -> Experiment:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(name, artifact_location=store.artifacts))
    elif experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment: '{name}' was deleted in {store}: restore it there, or choose another name"
        )
    return experiment


class _Point(NamedTuple):
    """Metrics at one point of their curves."""

    metrics: dict[str, float]
    time: float
    """Seconds since 1970."""
    step: int


def _send(client: MlflowClient, run_id: str, points: Sequence[_Point]) -> None:
    metrics = [
        Metric(key, value, int(point.time * 1000), point.step)
        for point in points
        for key, value in point.metrics.items()
    ]
    for start in range(0, len(metrics), METRICS_IN_A_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_IN_A_BATCH])


@contextmanager
def _locked(store: Store) -> Iterator[None]:
    """Locks an SQLite store while its tables and an experiment are created: MLflow does not synchronize that."""
    if store.database is None:
        yield
        return
    store.database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(store.database.with_suffix(".lock")):
        yield


@contextmanager
def _in_sentences(store: Store, wanted: str | None = None) -> Iterator[None]:
    """Turns errors of the store into UserErrors; `wanted` is what was looked up in it."""
    try:
        yield
    except (*_Problem, ValueError) as error:
        if wanted and not isinstance(error, SQLAlchemyError):
            raise UserError(
                f"{wanted} is not in {store} ({storage.first_line(error)}): 'phasecollapse ui' shows what is"
            ) from None
        fault = mlflow_errors.explain(error, str(store), store.database)
        raise UserError(f"{fault.problem}: {fault.remedy}") from None
