"""Which tracking store and experiment are meant: settings, then MLflow's environment variables, then the default."""

from __future__ import annotations

import os
import re
from pathlib import Path

from data_prep.common.errors import UserError, redact
from pipeline.config.schema import Settings, TrackingSettings

URI_VARIABLE, EXPERIMENT_VARIABLE = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
PASSWORDS = (
    "put it into the environment: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for a tracking server, PGUSER "
    "and PGPASSWORD for PostgreSQL"
)
EXAMPLES = "sqlite:////data/mlflow.db, http://HOST:5000 or postgresql://HOST/DATABASE"


def choose(settings: Settings) -> Settings:
    """The settings with the store and the experiment that are meant: what is set wins over the environment.

    Raises:
        UserError: an address cannot be that of a store, or holds a password.
    """
    tracking = settings.tracking
    chosen: dict[str, str | None] = {}
    if tracking.uri:
        chosen["uri"] = check(tracking.uri, "tracking.uri")
    elif not is_set(tracking):
        chosen["uri"] = from_environment()
    if "experiment" not in tracking.model_fields_set and (name := os.environ.get(EXPERIMENT_VARIABLE)):
        chosen["experiment"] = name
    copy = tracking.model_copy(update=chosen)
    if not is_set(tracking):
        copy.model_fields_set.discard("uri")
    return settings.model_copy(update={"tracking": copy})


def is_set(tracking: TrackingSettings) -> bool:
    """Whether the settings name the store, or its default; otherwise an address in them is that of the environment."""
    return "uri" in tracking.model_fields_set


def from_environment() -> str | None:
    """The store that MLFLOW_TRACKING_URI names; None without one.

    Raises:
        UserError: the address cannot be that of a store, or holds a password.
    """
    uri = os.environ.get(URI_VARIABLE)
    return check(uri, URI_VARIABLE) if uri else None


def ui_command(settings: Settings) -> str:
    """The command that shows the runs of these settings."""
    uri = choose(settings).tracking.uri
    return f"phasecollapse ui {f'--uri {uri}' if uri else f'--storage {settings.run.storage}'}"


def check(uri: str, name: str) -> str:
    """The address of a store, absolute.

    Args:
        uri: as a user wrote it.
        name: of the setting, option or variable, for errors.

    Raises:
        UserError: it cannot be the address of a store, or holds a password.
    """
    uri = uri.strip()
    address = "".join(uri.split())  # SQLAlchemy takes passwords with blanks
    if redact(address) != address or re.match(r"[^/@]+:[^@]*@", address):  # the latter lacks a scheme
        raise UserError(
            f"{name} must not hold a user name, password or key, as addresses are stored and shown: {PASSWORDS}"
        )
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        raise UserError(f"{name}: {uri} lacks its scheme: write http://{uri}")
    scheme, mark, rest = uri.partition(":")
    if not mark and scheme != "databricks":
        raise UserError(_no_folder(uri, Path(uri), name))
    scheme = scheme.lower()
    if scheme == "file":
        raise UserError(_no_folder(uri, Path(re.sub(r"^//(localhost)?", "", rest)), name))
    if scheme == "sqlite":
        return _database(rest, uri, name)
    return f"{scheme}{mark}{rest}"


def _database(rest: str, uri: str, name: str) -> str:
    file = rest.removeprefix("///")
    if file == rest or file in ("", ":memory:"):
        raise UserError(f"{name}: {uri} names no file: write sqlite:////FOLDER/mlflow.db, with four slashes")
    return f"sqlite:///{Path(file).expanduser().absolute()}"


def _no_folder(uri: str, folder: Path, name: str) -> str:
    folder = folder.expanduser().absolute()
    database = f"sqlite:///{folder}/mlflow.db"
    sentence = f"{name}: {uri} is a folder, and MLflow keeps runs in databases: write {database}"
    if any(folder.glob("*/meta.yaml")):
        return f"{sentence}, after 'mlflow migrate-filestore --source {folder} --target {database}'"
    return f"{sentence}, or {EXAMPLES}"
