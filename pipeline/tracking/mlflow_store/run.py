"""One run in MLflow: created, or found by a tag when it is resumed, and given what is to be in it.

MLflow stores a metric once per (name, step, time, value), so that a record may be sent twice. What it refuses, or does
not answer, raises a StoreFault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from mlflow import MlflowClient
from mlflow.artifacts import list_artifacts
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModel, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from data_prep.common.errors import UserError
from pipeline.tracking import ledger
from pipeline.tracking.content import Point
from pipeline.tracking.ledger import Status, Target
from pipeline.tracking.mlflow_store import models
from pipeline.tracking.mlflow_store.errors import StoreFault
from pipeline.tracking.mlflow_store.saved_views import PAGES_FOR_TRAINING
from pipeline.tracking.mlflow_store.store import (
    Problem,
    Store,
    connect,
    find_or_create_experiment,
    in_sentences,
    locked,
)
from pipeline.tracking.run_card import ARTIFACT

IDENTITY_TAG, PARENT_TAG, DESCRIPTION_TAG = "phasecollapse.id", "mlflow.parentRunId", "mlflow.note.content"
METRICS_IN_A_BATCH, TAGS_IN_A_BATCH, LONGEST_DIGEST, LONGEST_TAG = 1000, 100, 36, 8000
"""Limits of MLflow, which refuses more or longer ones."""


def open_run(target: Target, store: Store, known: str | None = None) -> Tracker:
    """Finds the run of `target` in its store, or creates it with its original start time.

    Args:
        store: at the address in `target`.
        known: id that it had in this store, if it is known.

    Raises:
        StoreFault: the store is unreachable, or refuses.
        UserError: the experiment was deleted.
    """
    with faults(store), locked(store):
        client = connect(store)
        run = (_existing(client, known) if known else None) or _find_or_create(client, store, target)
        return Tracker(client, store, run)


def _existing(client: MlflowClient, run_id: str) -> Run | None:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _find_or_create(client: MlflowClient, store: Store, target: Target) -> Run:
    experiment = find_or_create_experiment(client, store, target.experiment).experiment_id
    found = client.search_runs([experiment], f"tags.`{IDENTITY_TAG}` = '{target.identity}'", max_results=1)
    if found:
        return found[0]
    identity = {IDENTITY_TAG: target.identity}
    return client.create_run(experiment, int(target.started_at * 1000), identity, target.name)


class Tracker:
    """One run in MLflow. Its methods raise a StoreFault if the store is unreachable, or refuses."""

    def __init__(self, client: MlflowClient, store: Store, run: Run) -> None:
        self.client, self.store = client, store
        self.run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self.status: str = run.info.status
        self._parameters = set(run.data.params)

    def log_points(self, points: Sequence[Point]) -> None:
        """Sends points of curves."""
        metrics = [
            Metric(key, value, int(point.time * 1000), point.step)
            for point in points
            for key, value in point.metrics.items()
        ]
        with faults(self.store):
            for batch in _batches(metrics, METRICS_IN_A_BATCH):
                self.client.log_batch(self.run_id, metrics=batch)

    def log_parameters(self, parameters: Mapping[str, str]) -> None:
        """Sends the parameters that the run does not have yet: MLflow does not change a parameter."""
        missing = [Param(key, value) for key, value in parameters.items() if key not in self._parameters]
        with faults(self.store):
            for batch in _batches(missing, TAGS_IN_A_BATCH):
                self.client.log_batch(self.run_id, params=batch)
                self._parameters.update(parameter.key for parameter in batch)

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags, with the addresses of artifacts in the description; long values are cut off."""
        every = [
            RunTag(key, (self._addressed(value) if key == DESCRIPTION_TAG else value)[:LONGEST_TAG])
            for key, value in tags.items()
        ]
        with faults(self.store):
            for batch in _batches(every, TAGS_IN_A_BATCH):
                self.client.log_batch(self.run_id, tags=batch)

    def _addressed(self, description: str) -> str:
        """A card whose links lead to MLflow's pages, relative to them, as ports and prefixes differ."""
        page = f"#/experiments/{self._experiment_id}/runs/{self.run_id}/artifacts/"
        return re.sub(rf"\]\({ARTIFACT}([^)]*)\)", rf"]({page}\1?{PAGES_FOR_TRAINING})", description)

    def log_dataset(self, dataset: ledger.Dataset) -> None:
        """Names the data set that the run is trained on."""
        entity = Dataset(
            name=dataset.name,
            digest=dataset.digest[:LONGEST_DIGEST],
            source_type="local",
            source=json.dumps({"uri": dataset.source}),
            profile=json.dumps(dataset.contents),
        )
        with faults(self.store):
            self.client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", "training")])])

    def log_text(self, text: str, name: str) -> None:
        """Stores `text` as the artifact `name`."""
        with faults(self.store):
            self.client.log_text(self.run_id, text, name)

    def log_file(self, path: Path, name: str) -> None:
        """Stores a file, or all files of a folder, as the artifact `name`; a file keeps its own name."""
        with faults(self.store):
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), name)
            else:
                folder = str(Path(name).parent)
                self.client.log_artifact(self.run_id, str(path), None if folder == "." else folder)

    def log_models(self, folder: Path) -> None:
        """Stores the best and the last checkpoint of the run in `folder` as models."""
        with faults(self.store):
            models.log_models(self.client, self.run_id, folder)

    def set_status(self, status: Status, at: float | None = None) -> None:
        """Sets the status of the run, and when it ended (seconds since 1970) unless it is running."""
        with faults(self.store):
            if status == "RUNNING":
                self.client.update_run(self.run_id, status=status)
            else:
                self.client.set_terminated(self.run_id, status, None if at is None else int(at * 1000))
        self.status = status


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def faults(store: Store) -> Iterator[None]:
    """Turns errors of the store in the body into StoreFaults."""
    try:
        yield
    except Problem as error:
        raise StoreFault(store.explain(error)) from error


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
        runs, logged = [], []
        for identity in identities:
            runs += client.search_runs(experiments, f"tags.`{IDENTITY_TAG}` = '{identity}'")
        for run in runs:
            if versions := client.search_model_versions(f"run_id='{run.info.run_id}'"):
                raise UserError(
                    f"the model of run {run.info.run_name} is registered in {store} as version {versions[0].version} "
                    f"of {versions[0].name}: delete that version in MLflow first"
                )
            logged += client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return TrackedRuns(store, runs, logged)


def _local_folder(address: str) -> Path | None:
    """A folder of artifacts on this machine; None if a server has it."""
    parts = urlparse(address)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None
