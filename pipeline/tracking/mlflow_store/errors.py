"""What is wrong with a tracking store, and what to do about it, given an error of MLflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import mlflow
from mlflow.exceptions import MlflowException

from data_prep.common import storage
from data_prep.common.errors import is_disk_full


class Fault(NamedTuple):
    """A fault of a store, as the two parts of a sentence."""

    problem: str
    remedy: str
    permanent: bool = False
    """Whether no later attempt can succeed, until the user has done something."""


class Origin(NamedTuple):
    """What has named a store, for errors."""

    name: str = ""
    """Such as ``--uri``."""
    leave: str = ""
    """The part of a remedy by which the default store is meant."""
    other: str = ""
    """The part of a remedy by which another store is meant."""


PASSWORDS = {
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "https": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "postgresql": "PGUSER and PGPASSWORD",
}
"""Variables with user and password, by the scheme of addresses."""
REFUSALS = (
    (
        r"authentication failed|no password supplied|Access denied for user|error code 401|role .* does not exist",
        "refuses the user or the password",
        "correct {passwords}",
    ),
    (r"no pg_hba\.conf entry", "does not admit this machine", "add it to the server's pg_hba.conf"),
    (
        r"database \S+ does not exist|Unknown database",
        "has no such database",
        "create it (createdb), or correct the address",
    ),
    (r"Invalid Host header", "does not answer under this name", "start it with --allowed-hosts NAME"),
    (r"permission denied|error code 403|PERMISSION_DENIED", "denies the user a right", "have it granted"),
    (r"error code (404|405|501)", "is no tracking server of MLflow", "correct the address"),
)
"""How servers and databases refuse: pattern of their words, problem, remedy."""


class StoreFault(Exception):
    """A store is unreachable, or refuses."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.problem)
        self.fault = fault


def explain(error: Exception, store: str, database: Path | None, origin: Origin) -> Fault:
    """The fault behind an error.

    Args:
        error: raised by MLflow, its database or its files.
        store: URI, without a password.
        database: file of an SQLite store; None for other stores.
        origin: what has named the store.
    """
    text, reason = str(error), storage.first_line(error)
    another = origin.other and f", or {origin.other}"
    if database and is_disk_full(error):
        return Fault(f"no space is left on the disk of {database}", "free disk space, then rerun the same command")
    if "database schema" in text:  # such as: Detected out-of-date database schema (found version …
        return _other_version(text, store, database, another)
    if "unsupported URI" in text or "Can't load plugin" in text:
        address = f"{origin.name}: {store}" if origin.name else store
        return Fault(f"{address} is no address of a store ({reason})", "correct it", permanent=True)
    if database is None:
        return _away(error, store, origin)
    if isinstance(error, IsADirectoryError | PermissionError | NotADirectoryError):
        return Fault(f"{database} cannot be used ({reason})", f"check the file and its folder{another}", True)
    if "database is locked" in text:
        return Fault(f"{database} is locked by another process", f"rerun the same command when it has ended{another}")
    if "not a database" in text or "malformed" in text:
        return Fault(
            f"{database} is no SQLite database, or is damaged",
            f"move it away, so that a new one is made (the runs in their folders stay){another}",
            permanent=True,
        )
    return Fault(f"{database} cannot be used ({reason})", f"check the file and its folder{another}")


def _away(error: Exception, store: str, origin: Origin) -> Fault:
    """The fault of a tracking server, or of a database that is one.

    Args:
        store: URI, without a password.
    """
    text, passwords = str(error), PASSWORDS.get(re.split("[+:]", store)[0], "them")
    store = f"{origin.name}: {store}" if origin.name else store
    if isinstance(error, ModuleNotFoundError):
        return Fault(
            f"{store} needs the driver {error.name}",
            "install its package, for PostgreSQL by pip install 'phasecollapse[server]'",
            permanent=True,
        )
    if isinstance(error, OSError) and error.filename:  # of an artifact on this machine
        full = f"no space is left on the disk of {error.filename}"
        problem = full if is_disk_full(error) else f"{error.filename} cannot be written ({error.strerror})"
        return Fault(problem, "artifacts of the experiment lie there: check that folder, or set tracking.experiment")
    said = re.search(r"(?:FATAL|ERROR): +(.+)", text) or re.search(r"error (code \d+)", text)
    reason = said[1].replace("code", "HTTP status") if said else _network(text) or storage.first_line(error)
    for pattern, problem, remedy in REFUSALS:
        if re.search(pattern, text):
            return Fault(f"{store} {problem} ({reason})", remedy.format(passwords=passwords), permanent=True)
    away = _network(text) or isinstance(error, OSError) or "connection failed" in text
    leave = origin.leave and f", or {origin.leave}"
    return Fault(f"{store} {'is unreachable' if away else 'failed'} ({reason})", f"check it{leave}")


def _network(text: str) -> str | None:
    """Why a server was not reached, out of the several lines that say so; None if that is not the fault."""
    if "timed out" in text or "timeout expired" in text:
        return "it does not answer in time"
    found = re.search(r"\[Errno -?\d+\] ([\w ]+)|(Connection aborted|Connection refused|Failed to resolve)", text)
    return (found[1] or found[2]).lower() if found else None


def _other_version(text: str, store: str, database: Path | None, another: str) -> Fault:
    """The fault of a database whose tables are those of another MLflow: of an older one, if this one knows them."""
    found = re.search(r"found version (\w+)", text)
    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if found and not any(versions.glob(f"{found[1]}_*.py")):
        return Fault(
            f"{database or store} was written by a newer MLflow than {mlflow.__version__}",
            f"install that one{another}",
            permanent=True,
        )
    backup = f"cp {database} {database}.backup" if database else "a dump of the database"
    return Fault(
        f"{database or store} was written by an older MLflow than {mlflow.__version__}",
        f"end what writes into it, make a backup ({backup}) and run 'mlflow db upgrade {store}'{another}",
        permanent=True,
    )


def bad_request(message: str) -> MlflowException:
    """What a served model raises at a wrong request, which is answered with the message and status 400."""
    return MlflowException.invalid_parameter_value(message)
