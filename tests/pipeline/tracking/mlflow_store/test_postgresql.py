"""Several commands deliver runs to one PostgreSQL database at once."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

USER = "postgres"
"""As whom PostgreSQL runs if the tests run as root, which it refuses; and its administrator."""


def _programs() -> Path:
    """Folder of PostgreSQL's programs, the newest of Debian's; the test is skipped where there is none."""
    found = shutil.which("initdb")
    programs = [Path(found)] if found else list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("needs PostgreSQL's initdb: apt-get install postgresql")
    return max(programs, key=lambda program: int(program.parts[-3]) if not found else 0).resolve().parent


def _other_user() -> str | None:
    """The user that PostgreSQL needs; None if the tests do not run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(USER).pw_name
    except KeyError:
        pytest.skip(f"PostgreSQL refuses to run as root, and there is no user {USER}")


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty database of a PostgreSQL server on the loopback interface; its password is in the
    environment."""
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'phasecollapse[server]'")
    programs, user = _programs(), _other_user()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = secrets.token_hex(16)
    monkeypatch.setenv("PGUSER", USER)
    monkeypatch.setenv("PGPASSWORD", password)
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        data, password_file, log = Path(name) / "data", Path(name) / "password", Path(name) / "log"
        password_file.write_text(password)
        for path in (Path(name), password_file):
            if user:
                shutil.chown(path, user)
        initdb = [
            f"{programs}/initdb",
            "-D",
            f"{data}",
            "-U",
            USER,
            "--pwfile",
            f"{password_file}",
            "-A",
            "scram-sha-256",
        ]
        made = subprocess.run([*initdb, "--no-sync", "-E", "UTF8", "--locale", "C"], user=user, capture_output=True)
        assert made.returncode == 0, made.stderr.decode()
        command = [f"{programs}/postgres", "-D", f"{data}", "-p", f"{port}"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        with log.open("wb") as output:
            server = subprocess.Popen(command, user=user, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(psycopg.OperationalError):  # it does not listen yet
                    connection = psycopg.connect(host="127.0.0.1", port=port, dbname="postgres", autocommit=True)
                    break
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            connection.execute("create database mlflow")
            connection.close()
            yield f"postgresql://127.0.0.1:{port}/mlflow"
        finally:
            server.send_signal(signal.SIGINT)  # ends sessions, too
            server.wait(30)


@pytest.mark.slow
def test_three_runs_delivered_at_once_to_an_empty_database_lose_nothing(database: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.tracking_writers", "--uri", database, "--writers", "3"]
    done = subprocess.run(
        [*command, "--seconds", "3"],
        cwd=tmp_path,  # in which MLflow puts the artifacts of a database without a server
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, result["errors"], result["lost_rows"], result["lost_files"]) == (0, [], 0, 0), result
    assert result["rows"] >= 3 * 50  # each writer at least a batch
