"""Claims about a PostgreSQL database as a store, without a tracking server."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
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
from typing import Any
from urllib.parse import urlparse

import pytest

from data_prep.common.errors import UserError
from pipeline.tracking.mlflow_store.errors import StoreFault
from pipeline.tracking.mlflow_store.store import OPTION, Store, check, connect, in_sentences, named_store
from pipeline.tracking.run_delivery import RunDelivery
from tests.helpers.checkout import ROOT
from tests.helpers.tracked import end, find, make_tables, train, write_run

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


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """A connection to a PostgreSQL server on the loopback interface; its password is in the environment."""
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg: pip install 'phasecollapse[server]'")
    programs, user = _programs(), _other_user()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    password = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as environment:
        environment.setenv("PGUSER", USER)
        environment.setenv("PGPASSWORD", password)
        data, password_file, log = Path(name) / "data", Path(name) / "password", Path(name) / "log"
        password_file.write_text(password)
        for path in (Path(name), password_file):  # pytest's own folders are closed to other users
            if user:
                shutil.chown(path, user)
        initdb = [f"{programs}/initdb", "-D", f"{data}", "-U", USER, "--pwfile", f"{password_file}"]
        initdb += ["-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale", "C"]
        made = subprocess.run(initdb, user=user, capture_output=True)
        assert made.returncode == 0, made.stderr.decode()
        command = [f"{programs}/postgres", "-D", f"{data}", "-p", f"{port}"]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "fsync=off"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, user=user, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(psycopg.OperationalError):  # it does not listen yet
                    connection = psycopg.connect(host="127.0.0.1", port=port, dbname="postgres", autocommit=True)
                    break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield connection
            connection.close()
        finally:
            process.send_signal(signal.SIGINT)  # ends sessions, too
            process.wait(30)


@pytest.fixture
def database(server: Any) -> Iterator[str]:
    """The URI of an empty database, which MLflow has not known under this name."""
    name = f"mlflow_{secrets.token_hex(4)}"
    server.execute(f"create database {name}")
    yield f"postgresql://127.0.0.1:{server.info.port}/{name}"
    server.execute(f"drop database {name} with (force)")


@pytest.mark.slow
def test_three_runs_delivered_at_once_to_an_empty_database_lose_nothing(database: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.tracking_writers", "--uri", database, "--writers", "3"]
    done = subprocess.run(
        [*command, "--seconds", "3"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, result["errors"], result["lost_rows"], result["lost_files"]) == (0, [], 0, 0), result
    assert result["rows"] >= 3 * 50  # each writer at least a batch


@pytest.mark.slow
def test_artifacts_of_a_database_without_a_server_lie_beside_the_runs(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    search = write_run(tmp_path / "runs" / "search", database)
    trial = write_run(search / "trial", database, in_search=True)
    for folder in (search, trial):
        train(folder, 1)
        end(folder)
        RunDelivery(folder, owned=False).deliver()
    store = named_store(tmp_path / "runs", database)
    for folder in (search, trial):
        found = find(store, folder.name)
        assert found.info.status == "FINISHED"
        assert found.info.artifact_uri == f"file://{tmp_path}/runs/artifacts/{found.info.run_id}/artifacts"
        assert Path(urlparse(found.info.artifact_uri).path, "evaluation/evaluation.json").exists()
    assert not [path for path in tmp_path.glob("mlruns/**/*") if path.is_file()], "MLflow's own choice"
    taken = tmp_path / "others" / "artifacts"
    run = write_run(taken.with_name("run"), database, experiment="another")
    taken.touch()
    with pytest.raises(StoreFault, match=rf"^{taken}.* cannot be written \(Not a directory\)$"):
        RunDelivery(run).deliver()


def test_what_a_database_refuses_is_named_as_what_it_is(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"postgresql://127.0.0.1:{server.info.port}"

    def refused(uri: str) -> str:
        began = time.monotonic()
        with pytest.raises(UserError) as error:
            check(Store(uri, OPTION))
        with pytest.raises(UserError, match=re.escape(str(error.value))), in_sentences(Store(uri, OPTION)):
            connect(Store(uri, OPTION))
        assert time.monotonic() - began < 10, "MLflow itself tries ten times"
        return str(error.value)

    assert refused(f"{address}/none") == (
        f'--uri: {address}/none has no such database (database "none" does not exist): create it (createdb), or '
        "correct the address"
    )
    server.execute("create role reader login password 'x'")
    monkeypatch.setenv("PGUSER", "reader")
    assert refused(f"{address}/postgres") == (
        f"--uri: {address}/postgres refuses the user or the password (password authentication failed for user "
        '"reader"): correct PGUSER and PGPASSWORD'
    )
    monkeypatch.setenv("PGPASSWORD", "x")
    with pytest.raises(StoreFault, match=r"denies the user a right \(.*permission denied for schema public"):
        make_tables(Store(f"{address}/postgres"))
    assert "failed (" not in refused("postgresql+none://127.0.0.1/x")
    assert re.match(r"--uri: mysql://.* needs the driver MySQLdb: install its package", refused("mysql://127.0.0.1/x"))


def test_a_database_that_is_away_is_no_error_of_the_user_and_found_away_at_once() -> None:
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'phasecollapse[server]'")
    store = Store("postgresql://127.0.0.1:9/mlflow", OPTION)
    check(store)
    began = time.monotonic()
    away = r"^--uri: postgresql://127\.0\.0\.1:9/mlflow is unreachable \(connection refused\): check it"
    with pytest.raises(UserError, match=away), in_sentences(store):
        connect(store)
    assert time.monotonic() - began < 5
