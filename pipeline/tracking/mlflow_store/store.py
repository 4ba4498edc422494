"""Where runs are tracked: the store, its client and its experiments."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy.exc import SQLAlchemyError

from data_prep.common import storage
from data_prep.common.errors import UserError
from pipeline.config.schema import Settings
from pipeline.tracking.mlflow_store import addresses, errors, moved, saved_views
from pipeline.tracking.mlflow_store.errors import Fault, Origin

Problem = (MlflowException, SQLAlchemyError, OSError, ModuleNotFoundError)
"""Exceptions of a store that fails; requests' are OSErrors."""
SETTING, VARIABLE, OPTION, RECORD = (
    Origin("tracking.uri", "unset tracking.uri", "set tracking.uri to another store"),
    Origin(addresses.URI_VARIABLE, f"unset {addresses.URI_VARIABLE}", f"set {addresses.URI_VARIABLE} to another store"),
    Origin("--uri", "leave --uri out", "name another store with --uri"),
    Origin(),
)
"""What names stores: settings, the environment, the command line, and the folder of a run that was tracked there."""
FAILED = (
    *("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "ENDPOINT_NOT_FOUND"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"),
)
"""Codes of errors that say nothing about what was looked up."""
LOCK_SECONDS, LOCK_KEY = 120, 0x706861736563
"""How long to wait for the lock of a PostgreSQL database, and its number, which is the same in all versions."""


@dataclass(frozen=True)
class Store:
    """An MLflow tracking store."""

    uri: str
    """URI of a database, such as ``sqlite:////data/runs/mlflow.db``, or of a tracking server."""
    origin: Origin = field(default=RECORD, compare=False)
    storage: Path | None = field(default=None, compare=False)
    """Folder of the runs, for artifacts where no server takes them."""

    def __str__(self) -> str:
        """The URI without a password, for messages."""
        return storage.redact(self.uri)

    @property
    def database(self) -> Path | None:
        """The file of an SQLite store; None for other stores."""
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

    @property
    def serverless(self) -> bool:
        """Whether it is a database of a database server, such as PostgreSQL, without a tracking server."""
        return not self.database and self.uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES

    @property
    def artifacts(self) -> str | None:
        """Artifact location of new experiments: beside an SQLite database, and in the folder of the runs for another
        database, as MLflow would choose the current folder; None if a server chooses."""
        folder = self.database.parent if self.database else self.storage if self.serverless else None
        return (folder.absolute() / moved.ARTIFACTS).as_uri() if folder else None

    def explain(self, error: Exception) -> Fault:
        """The fault behind an error."""
        return errors.explain(error, str(self), self.database, self.origin)


def store_of(settings: Settings) -> Store:
    """The store of `tracking.uri` or MLFLOW_TRACKING_URI; by default an SQLite database inside `run.storage`.

    Raises:
        UserError: the address cannot be that of a store, or holds a password.
    """
    tracking, storage = addresses.choose(settings).tracking, Path(settings.run.storage)
    if not tracking.uri:
        return default_store(storage, SETTING)
    return Store(tracking.uri, SETTING if addresses.is_set(tracking) else VARIABLE, storage)


def store_of_run(settings: Settings, storage: Path) -> Store:
    """The store that a run was tracked in first.

    Args:
        settings: of the run, which hold what was chosen.
        storage: folder in which the run's folder is now.
    """
    uri = settings.tracking.uri
    return Store(uri, RECORD, storage) if uri else default_store(storage)


def default_store(storage: Path, origin: Origin = RECORD) -> Store:
    """The default store of the runs in the folder `storage`."""
    return Store(f"sqlite:///{storage.absolute() / 'mlflow.db'}", origin, storage)


def named_store(storage: Path | None, uri: str | None) -> Store:
    """The store that a command's options name.

    Args:
        storage: folder of the runs, which holds the default store; by default ``runs``.
        uri: the store; it wins over `storage`, which wins over MLFLOW_TRACKING_URI.

    Raises:
        UserError: the address cannot be that of a store, or holds a password.
    """
    folder = storage or Path("runs")
    if uri:
        return Store(addresses.check(uri, OPTION.name), OPTION, folder)
    found = addresses.from_environment() if storage is None else None
    return Store(found, VARIABLE, folder) if found else default_store(folder, OPTION)


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
    """A client of the store, made without a request to a tracking server.

    Raises:
        OSError: the file of an SQLite store cannot be opened, or is locked.
        SQLAlchemyError: another database is unreachable, or refuses.
        ModuleNotFoundError: its driver is not installed.
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
    if store.serverless:
        _connected(store.uri).close()  # likewise
    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def check(store: Store) -> None:
    """Checks that a store can be used at all. One that is away, or locked, is none of the faults.

    Raises:
        UserError: the kind of address is unknown, an SQLite database is damaged or of another version of MLflow, or
            another database refuses, or lacks its driver.
    """
    try:
        if store.serverless:
            _connected(store.uri).close()  # a client would make the tables, unlocked
            return
        client = connect(store)
        if store.database and store.database.exists():
            client.search_experiments(max_results=1)
    except (*Problem, ValueError) as error:
        fault = store.explain(error)
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
    with _connected(uri) as connection:
        connection.execute(sqlalchemy.text(f"set local lock_timeout = '{LOCK_SECONDS}s'"))
        connection.execute(sqlalchemy.text(f"select pg_advisory_xact_lock({LOCK_KEY})"))
        yield


def _connected(uri: str) -> sqlalchemy.Connection:
    """A connection to a database, after one attempt; MLflow makes ten, in two minutes."""
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    return sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect()


@contextmanager
def in_sentences(store: Store, wanted: str | None = None) -> Iterator[None]:
    """Turns errors of the store in the body into UserErrors; `wanted` is what was looked up in it."""
    try:
        yield
    except (*Problem, ValueError) as error:
        failed = getattr(error, "error_code", None) in FAILED or isinstance(error, SQLAlchemyError | ImportError)
        if wanted and not failed:
            raise UserError(
                f"{wanted} is not in {store} ({storage.first_line(error)}): 'phasecollapse ui' shows what is"
            ) from None
        fault = store.explain(error)
        raise UserError(f"{fault.problem}: {fault.remedy}") from None
