"""Where runs are tracked: the store, its client and its experiments."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from data_prep.common import storage
from data_prep.common.errors import UserError
from pipeline.config.schema import Settings
from pipeline.tracking.mlflow_store import errors

Problem = (MlflowException, SQLAlchemyError, OSError)
"""Exceptions of a store that fails; requests' are OSErrors."""


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


def newest_experiment(store: Store) -> str | None:
    """Id of the most recently updated experiment; None if there is none except MLflow's `Default`.

    Raises:
        UserError: the store is unreachable.
    """
    with in_sentences(store):
        found = connect(store).search_experiments(order_by=["last_update_time DESC"])
    return next((experiment.experiment_id for experiment in found if experiment.name != "Default"), None)


def connect(store: Store) -> MlflowClient:
    """A client of the store, made without a request.

    Raises:
        OSError: the file of an SQLite store cannot be opened.
    """
    for noisy in (
        "mlflow",
        "alembic",
        "urllib3",
    ):  # they log created tables, and tracebacks of errors that are reported here
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    if store.database and store.database.exists():
        store.database.open("rb").close()  # MLflow would try for minutes what fails here at once
    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def find_or_create_experiment(client: MlflowClient, store: Store, name: str) -> Experiment:
    """The experiment `name`, created if it does not exist.

    Raises:
        UserError: it was deleted.
        MlflowException: the store is unreachable, or refuses.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        experiment = client.get_experiment(client.create_experiment(name, artifact_location=store.artifacts))
    elif experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment: '{name}' was deleted in {store}: restore it there, or choose another name"
        )
    return experiment


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Locks an SQLite store while its tables and an experiment are created: MLflow does not synchronize that."""
    if store.database is None:
        yield
        return
    store.database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(store.database.with_suffix(".lock")):
        yield


@contextmanager
def in_sentences(store: Store, wanted: str | None = None) -> Iterator[None]:
    """Turns errors of the store in the body into UserErrors; `wanted` is what was looked up in it."""
    try:
        yield
    except (*Problem, ValueError) as error:
        if wanted and not isinstance(error, SQLAlchemyError):
            raise UserError(
                f"{wanted} is not in {store} ({storage.first_line(error)}): 'phasecollapse ui' shows what is"
            ) from None
        fault = errors.explain(error, str(store), store.database)
        raise UserError(f"{fault.problem}: {fault.remedy}") from None
