"""MLflow: one tracked run per run, found by a tag when the run is resumed.

MLflow gets copies of the records in the run's folder, each with the time at which it was written. MLflow stores a
metric once per (name, step, time, value), so a record may be sent twice, and what a server has missed is sent later. An
MLflow server that fails never stops a training in progress.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.artifacts import list_artifacts
from mlflow.entities import LoggedModel, Metric, Param, Run, RunTag, ViewType
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from data_prep.common.errors import UserError
from pipeline.runs import history
from pipeline.tracking.mlflow_store import errors, models
from pipeline.tracking.mlflow_store.store import (
    Problem,
    Store,
    connect,
    find_or_create_experiment,
    in_sentences,
    locked,
)

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

IDENTITY_TAG, FOLDER_TAG, PARENT_TAG = "phasecollapse.id", "phasecollapse.folder", "mlflow.parentRunId"
METRICS_IN_A_BATCH = 1000  # MLflow refuses more


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
    with in_sentences(store), locked(store):
        client = connect(store)
        place = find_or_create_experiment(client, store, experiment)
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

    def log_models(self, folder: Path) -> bool:
        """Stores the best and the last checkpoint of the run in `folder` as models."""
        with self._warning():
            models.log_models(self._client, self.run_id, folder)
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
        except Problem as error:
            if not self._unreachable:
                logger.warning(
                    "%s: training continues, and the missing metrics are sent when it answers again, or when the same "
                    "command is rerun",
                    errors.explain(error, str(self._store), self._store.database).problem,
                )
            self._unreachable = True


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


@dataclass(frozen=True)
class TrackedRuns:
    """Runs in a store, and their models, to be deleted."""

    store: Store
    runs: Sequence[Run] = ()
    models: Sequence[LoggedModel] = ()

    @property
    def bytes(self) -> int:
        """Size of the artifacts, in bytes, as far as they are on this machine."""
        folders = filter(None, map(_local_folder, self._artifacts))
        return sum(file.lstat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())

    def delete(self) -> None:
        """Deletes all of it. MLflow keeps a record of what was deleted until ``mlflow gc``.

        Raises:
            UserError: the store is unreachable, or refuses.
        """
        with in_sentences(self.store):
            client = connect(self.store)
            for address in self._artifacts:
                if list_artifacts(artifact_uri=address, tracking_uri=self.store.uri):
                    get_artifact_repository(address, self.store.uri).delete_artifacts()
                if folder := _local_folder(address):
                    with suppress(OSError):  # it holds something else
                        folder.parent.rmdir()
            for model in self.models:
                client.delete_logged_model(model.model_id)
            for run in self.runs:
                client.delete_run(run.info.run_id)

    @property
    def _artifacts(self) -> list[str]:
        """Addresses of the folders of artifacts."""
        return [*(run.info.artifact_uri for run in self.runs), *(model.artifact_location for model in self.models)]


def find_runs(store: Store, identities: Sequence[str]) -> TrackedRuns:
    """The tracked runs with these identities, in every experiment; none where nothing is tracked in the store.

    Raises:
        UserError: the store is unreachable, or a model of a run is registered.
    """
    if store.database and not store.database.exists():
        return TrackedRuns(store)
    with in_sentences(store):
        client = connect(store)
        experiments = [one.experiment_id for one in client.search_experiments(view_type=ViewType.ALL)]
        runs, models = [], []
        for identity in identities:
            runs += client.search_runs(experiments, f"tags.`{IDENTITY_TAG}` = '{identity}'")
        for run in runs:
            if versions := client.search_model_versions(f"run_id='{run.info.run_id}'"):
                raise UserError(
                    f"the model of run {run.info.run_name} is registered in {store} as version {versions[0].version} "
                    f"of {versions[0].name}: delete that version in MLflow first"
                )
            models += client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return TrackedRuns(store, runs, models)


def _local_folder(address: str) -> Path | None:
    """A folder of artifacts on this machine; None if a server has it."""
    parts = urlparse(address)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
