"""Where runs are tracked: the store, its client and its experiments."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from data_prep.common import storage
from data_prep.common.errors import UserError
from pipeline.config.schema import Settings
from pipeline.tracking.mlflow_store import addresses, errors, moved, saved_views

Problem = (MlflowException, SQLAlchemyError, OSError)
"""Exceptions of a store that fails; requests' are OSErrors."""
LOCK_SECONDS, LOCK_KEY = 120, 0x706861736563
"""How long to wait for the lock of a PostgreSQL database, and its number, which is the same in all versions."""


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
        return (self.database.parent / moved.ARTIFACTS).as_uri() if self.database else None


def store_of(settings: Settings) -> Store:
    """The store of `tracking.uri` or MLFLOW_TRACKING_URI; by default an SQLite database inside `run.storage`.

    Raises:
        UserError: the address cannot be that of a store, or holds a password.
    """
    uri = addresses.choose(settings).tracking.uri
    return Store(uri) if uri else default_store(Path(settings.run.storage))


def default_store(storage: Path) -> Store:
    """The default store of the runs in the folder `storage`."""
    return Store(f"sqlite:///{storage.absolute() / 'mlflow.db'}")


def named_store(storage: Path | None, uri: str | None) -> Store:
    """The store that a command's options name.

    Args:
        storage: folder of the runs, which holds the default store; by default ``runs``.
        uri: the store; it wins over `storage`, which wins over MLFLOW_TRACKING_URI.

    Raises:
        UserError: the address cannot be that of a store, or holds a password.
    """
    if uri:
        return Store(addresses.check(uri, "--uri"))
    found = addresses.from_environment() if storage is None else None
    return Store(found) if found else default_store(storage or Path("runs"))


def shown_experiment(store: Store) -> Experiment | None:
    """The experiment of MLFLOW_EXPERIMENT_NAME, or else that updated last, with its views; MLflow's `Default` is none.

    Raises:
        UserError: the store is unreachable.
    """
    wanted = os.environ.get(addresses.EXPERIMENT_VARIABLE)
    with in_sentences(store):
        client = connect(store)
        found = client.search_experiments(order_by=["last_update_time DESC"])
        named = [one for one in found if one.name == wanted] or [one for one in found if one.name != "Default"]
        return _with_views(client, named[0]) if named else None


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
    if store.uri.startswith("http"):  # by default a call to an unreachable server blocks for four minutes
        for name, value in (("MAX_RETRIES", "2"), ("TIMEOUT", "10"), ("BACKOFF_FACTOR", "1")):
            os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    if store.database and store.database.exists():
        store.database.open("rb").close()  # MLflow would try for minutes what fails here at once
        moved.follow(store.database)
    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def check(store: Store) -> None:
    """Checks that a store can be used at all. One that is away, or locked, is none of the faults.

    Raises:
        UserError: the kind of address is unknown, or an SQLite database is damaged or of another version of MLflow.
    """
    try:
        client = connect(store)
        if store.database and store.database.exists():
            client.search_experiments(max_results=1)
    except (*Problem, ValueError) as error:
        fault = errors.explain(error, str(store), store.database)
        if fault.permanent:
            raise UserError(f"{fault.problem}: {fault.remedy}") from None


def find_or_create_experiment(client: MlflowClient, store: Store, name: str) -> Experiment:
    """The experiment `name`, created if it does not exist.

    Raises:
        UserError: it was deleted.
        MlflowException: the store is unreachable, or refuses.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            client.create_experiment(name, artifact_location=store.artifacts)
        except MlflowException:
            if client.get_experiment_by_name(name) is None:
                raise  # otherwise another process has made it in this moment
        experiment = client.get_experiment_by_name(name)
    elif experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment: '{name}' was deleted in {store}: restore it there, or choose another name"
        )
    return _with_views(client, experiment)


def _with_views(client: MlflowClient, experiment: Experiment) -> Experiment:
    """The experiment, with the views of this program in it, where the user may write them."""
    with suppress(MlflowException):  # a user who may only read
        if saved_views.write(client, experiment):
            return client.get_experiment(experiment.experiment_id)
    return experiment


@contextmanager
def locked(store: Store) -> Iterator[None]:
    """Locks a database while its tables and an experiment are created: MLflow does not synchronize that.

    Raises:
        SQLAlchemyError: a PostgreSQL database is unreachable, or was locked for too long.
    """
    if store.database:
        store.database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(store.database.with_suffix(".lock")):
            yield
    elif store.uri.startswith("postgresql"):
        with _locked_postgresql(store.uri):
            yield
    else:
        yield


@contextmanager
def _locked_postgresql(uri: str) -> Iterator[None]:
    """Locks a PostgreSQL database for all machines; it releases the lock when the transaction ends, however that is."""
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"set local lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(sqlalchemy.text(f"select pg_advisory_xact_lock({LOCK_KEY})"))
        yield


@contextmanager
def in_sentences(store: Store, wanted: str | None = None) -> Iterator[None]:
    """Turns errors of the store in the body into UserErrors; `wanted` is what was looked up in it."""
    try:
        yield
    except (*Problem, ValueError) as error:
        failed = getattr(error, "error_code", None) in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")
        if wanted and not failed and not isinstance(error, SQLAlchemyError):
            raise UserError(
                f"{wanted} is not in {store} ({storage.first_line(error)}): 'phasecollapse ui' shows what is"
            ) from None
        fault = errors.explain(error, str(store), store.database)
        raise UserError(f"{fault.problem}: {fault.remedy}") from None
