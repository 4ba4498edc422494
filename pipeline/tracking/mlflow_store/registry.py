"""Models by name: registers those of runs, and finds what models:/… and runs:/… stand for."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from data_prep.common.errors import UserError
from pipeline.config.references import REFERENCES
from pipeline.runs import run_folder, trained_model
from pipeline.runs.trained_model import Which
from pipeline.tracking.mlflow_store import models
from pipeline.tracking.mlflow_store.models import CHECKPOINT_TAG, DESCRIPTION_TAG
from pipeline.tracking.mlflow_store.run import IDENTITY_TAG
from pipeline.tracking.mlflow_store.store import Store, connect, in_sentences, named_store, store_of_run

MODELS, RUNS = REFERENCES
VERSIONS_TAG = "mlflow.modelVersions"
"""Tag of a model, by which MLflow's pages link it to its versions."""
MODEL_TAG = "phasecollapse.model"
"""Tag of a version: id of its model, which MLflow's own databases do not keep."""
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
_NAME, _ALIAS = re.compile(r"[^/:@'\"]+"), re.compile(r"(?!latest$|v\d+$)[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Registered:
    """A version of a registered model."""

    name: str
    version: str
    checkpoint: str
    """Name of its checkpoint, such as ``epoch-00010``."""
    new: bool
    """Whether it was registered now."""


def register(
    run: str, name: str, *, which: Which, alias: str | None, storage: Path | None, uri: str | None = None
) -> Registered:
    """Registers the best or the last checkpoint of a run as the next version of a model, unless it is one already.

    Args:
        run: folder of a run, whose models are logged if they are missing, or runs:/ID.
        name: of the registered model, which is created if it does not exist.
        which: checkpoint.
        alias: to set on the version; another version loses it.
        storage: folder of the runs, for runs:/ID.
        uri: of the store; by default the one of the run.

    Raises:
        UserError: MLflow does not have the run, the run has no such checkpoint, the name or the alias is not allowed,
            or the store is unreachable.
    """
    _check_names(name, alias)
    folder = None if run.startswith(RUNS) else Path(run)
    store, identity = named_store(folder.parent if folder else storage, uri), None
    if folder:
        identity = run_folder.read_identity(folder)
        if identity is None:
            raise UserError(f"{folder} is not a run: name the folder of a run, or runs:/ID")
        if not uri:
            store = store_of_run(identity.settings, folder.parent)
    with in_sentences(store, run):
        client = _connect(store)
        run_id = run.removeprefix(RUNS) if identity is None else _find_run(client, store, identity.id, run)
        logged = models.log_models(client, run_id, folder) if folder else {}
        model = logged.get(which) or _newest(client, client.get_run(run_id), which)
        if model is None:
            raise UserError(f"run {run} has no checkpoint for a model: train it for one epoch first")
        version, new = _version_of(client, name, model)
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
    return Registered(name, str(version.version), model.tags[CHECKPOINT_TAG], new)


@contextmanager
def checkpoint_of(source: str, storage: Path | None, uri: str | None = None) -> Iterator[Path]:
    """Yields the folder of a run or a checkpoint, downloaded if `source` is models:/… or runs:/….

    Args:
        source: a folder, or see :func:`downloaded`.
        storage: folder of the runs, which holds the default store.
        uri: another store, see `named_store`.

    Raises:
        UserError: as :func:`downloaded`.
    """
    if not source.startswith(REFERENCES):
        yield Path(source)
        return
    with downloaded(source, named_store(storage, uri)) as checkpoint:
        yield checkpoint


@contextmanager
def downloaded(source: str, store: Store) -> Iterator[Path]:
    """Yields the folder of a checkpoint in MLflow, which exists until the body ends.

    Args:
        source: models:/NAME@ALIAS, models:/NAME/VERSION, models:/NAME (the latest version), models:/ID, runs:/ID (the
            last checkpoint), runs:/ID/best, or runs:/ID/PATH for an artifact.
        store: that holds it.

    Raises:
        UserError: MLflow has no such model or run or is unreachable, or the model is not one of this package.
    """
    with tempfile.TemporaryDirectory(prefix="phasecollapse-") as scratch:
        with in_sentences(store, source):
            location = _artifacts(_connect(store), source)
            fetched = Path(download_artifacts(artifact_uri=location, dst_path=scratch, tracking_uri=store.uri))
        try:
            checkpoint = trained_model.find(fetched)
        except UserError as error:
            raise UserError(f"{source} is damaged, or no model that phasecollapse has logged ({error})") from None
        yield checkpoint


def _connect(store: Store) -> MlflowClient:
    """A client of a store that exists; MLflow would make a new database.

    Raises:
        UserError: it does not.
    """
    if store.database and not store.database.exists():
        raise UserError(f"nothing is tracked in {store.database}: name the store of the model with --storage or --uri")
    return connect(store)


def _artifacts(client: MlflowClient, source: str) -> str:
    """Address of the files of a model or a run."""
    if source.startswith(RUNS):
        run_id, _, path = source.removeprefix(RUNS).strip("/").partition("/")
        run = client.get_run(run_id)
        model = _newest(client, run, path or "last")
        return model.artifact_location if model else f"{run.info.artifact_uri}/{path}"
    rest = source.removeprefix(MODELS).strip("/")
    if _MODEL_ID.fullmatch(rest):
        return client.get_logged_model(rest).artifact_location
    version = _find_version(client, rest)
    if model_id := version.tags.get(MODEL_TAG):
        return client.get_logged_model(model_id).artifact_location
    return client.get_model_version_download_uri(version.name, version.version)


def _find_version(client: MlflowClient, reference: str) -> ModelVersion:
    """The version that NAME@ALIAS, NAME/VERSION or NAME stands for."""
    name, at, alias = reference.partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, _, number = reference.partition("/")
    if number and number != "latest":
        return client.get_model_version(name, number)
    client.get_registered_model(name)  # raises
    return max(client.search_model_versions(f"name='{name}'"), key=lambda one: int(one.version))


def _newest(client: MlflowClient, run: Run, name: str) -> LoggedModel | None:
    """The newest complete model of a run with a name."""
    found = models.find_models(client, run, name)
    return next((one for one in found if one.status == LoggedModelStatus.READY), None)


def _find_run(client: MlflowClient, store: Store, identity: str, run: str) -> str:
    """Id of the tracked run.

    Raises:
        UserError: it is not in the store.
    """
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{IDENTITY_TAG}` = '{identity}'", max_results=1)
    if not found:
        raise UserError(
            f"run {run} is not tracked in {store}: name its store with --uri, or run 'phasecollapse sync {run}'"
        )
    run_id: str = found[0].info.run_id
    return run_id


def _version_of(client: MlflowClient, name: str, model: LoggedModel) -> tuple[ModelVersion, bool]:
    """The version of a registered model that a model is, and whether it was created now."""
    with suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name='{name}'")
    if found := [one for one in versions if one.tags.get(MODEL_TAG) == model.model_id]:
        return found[0], False
    version = client.create_model_version(
        name,
        model.artifact_location,  # models:/ID is looked up in MLflow's global store
        model.source_run_id,
        tags={MODEL_TAG: model.model_id, CHECKPOINT_TAG: model.tags[CHECKPOINT_TAG]},
        description=model.tags.get(DESCRIPTION_TAG),
        model_id=model.model_id,
    )
    links = [*json.loads(model.tags.get(VERSIONS_TAG, "[]")), {"name": name, "version": version.version}]
    client.set_logged_model_tags(model.model_id, {VERSIONS_TAG: json.dumps(links)})
    return version, True


def _check_names(name: str, alias: str | None) -> None:
    """Refuses what MLflow refuses, and what models:/… could not name.

    Raises:
        UserError: names the argument.
    """
    if not _NAME.fullmatch(name) or _MODEL_ID.fullmatch(name):
        raise UserError(f"NAME: a model cannot be called {name!r}: leave out / : @ and quotation marks")
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise UserError(
            f"--alias: {alias!r} is not allowed: use letters, digits, - and _, but neither 'latest' nor a version "
            "such as v2"
        )
