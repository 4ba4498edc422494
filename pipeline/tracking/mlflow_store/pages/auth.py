"""Users and passwords of MLflow's pages: its basic authentication, set up in a folder that only its owner reads."""

from __future__ import annotations

import importlib.util
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import UserError

APP = "basic-auth"
"""Name of MLflow's app that asks for passwords."""
FOLDER, PASSWORD_FILE, KEY_FILE = "mlflow-auth", "admin-password", "secret-key"
PASSWORD_VARIABLE = "MLFLOW_AUTH_ADMIN_PASSWORD"
PERMISSION = "EDIT"
"""What users may do with experiments of others: a team's runs are in one experiment."""


class Access(NamedTuple):
    """What a server needs to ask for passwords."""

    environment: dict[str, str]
    """Variables of its process."""
    password_file: Path
    """Holds the password of the user ``admin`` that was made first."""
    new: bool
    """Whether the password was made now."""

    def sentence(self) -> str:
        """How to log in; a password is shown once."""
        if self.new:
            password = self.environment[PASSWORD_VARIABLE]
            return f"log in as admin with the password {password} (kept in {self.password_file})"
        return f"log in as admin with the password in {self.password_file}, unless it was changed"


def prepare(storage: Path) -> Access:
    """Makes the files of the authentication in a folder of `storage`, or finds them.

    Raises:
        UserError: what MLflow needs for it is not installed, or the folder cannot be written.
    """
    if importlib.util.find_spec("flask_wtf") is None:
        raise UserError("--auth needs packages that are not installed: pip install 'phasecollapse[server]'")
    folder = storage.absolute() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        password, new = _secret(folder / PASSWORD_FILE)
        key, _ = _secret(folder / KEY_FILE)
        config = folder / "basic_auth.ini"
        config.write_text(
            f"[mlflow]\ndefault_permission = {PERMISSION}\ndatabase_uri = sqlite:///{folder / 'users.db'}\n"
            "admin_username = admin\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
            encoding="utf-8",
        )
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): check its permissions") from None
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        PASSWORD_VARIABLE: password,  # used when the user is made; not in a command line, which all see
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key,
    }
    return Access(environment, folder / PASSWORD_FILE, new)


def _secret(file: Path) -> tuple[str, bool]:
    """A random secret in a file that its owner alone reads, and whether it was made now."""
    if file.exists():
        return file.read_text(encoding="utf-8").strip(), False
    secret = secrets.token_urlsafe(24)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
        opened.write(f"{secret}\n")
    return secret, True
