"""Claims about MLflow's pages, and about a server that goes away and comes back."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from data_prep.common.errors import UserError
from pipeline.tracking.mlflow_store.pages import server
from pipeline.tracking.mlflow_store.pages.server import Access, Server
from pipeline.tracking.mlflow_store.store import Store
from tests.helpers.tracked import make_tables


def test_a_port_that_is_taken_is_named(store: Store) -> None:
    make_tables(store)
    assert store.database
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--port: {port} is taken by another program"):
            server.serve(store, Access(store.database.parent, port), announce=print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"host": "0.0.0.0"},
            r"--host 0\.0\.0\.0 opens the pages, .*: add --auth, or .* \(ssh -L 5000:localhost:5000\)",
        ),
        ({"prefix": "ml/"}, r"--prefix: ml/ must be a path such as /mlflow"),
    ],
)
def test_pages_are_never_public_without_a_password(store: Store, options: dict[str, str], message: str) -> None:
    make_tables(store)
    with pytest.raises(UserError, match=message):
        server.serve(store, Access(Path(), **options), announce=print)


@contextlib.contextmanager
def pages(storage: Path, port: int, *options: str) -> Iterator[str]:
    """``phasecollapse ui`` as a user starts it, ended by Ctrl-C; gives the address that it prints."""
    command = [
        sys.executable,
        "-m",
        "pipeline.cli.main",
        "ui",
        "--storage",
        str(storage),
        "--port",
        str(port),
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stderr
            line = process.stdout.readline()
            if "--auth" in options:
                assert "log in as admin" in line
                line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+[^#]*(?=/#)", line)
            assert address, line + process.stderr.read()
            children = psutil.Process(process.pid).children(recursive=True)
            assert "/#/experiments/1/runs?" in line
            yield address.group()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=120) == 0
            assert process.stderr.read() == ""
            assert not [child for child in children if child.is_running() and child.status() != "zombie"]
        finally:
            process.kill()


def request(address: str, host: str | None = None, password: str | None = None) -> int:
    """The HTTP status of an answer."""
    headers = {"Host": host} if host else {}
    if password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
    try:
        asked = urllib.request.Request(address, headers=headers)
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.slow
def test_pages_answer_requests_to_this_machine_alone(store: Store) -> None:
    assert store.database
    make_tables(store)
    with pages(store.database.parent, 0) as address:
        assert request(address) == 200
        assert request(f"{address}/api/2.0/mlflow/experiments/get?experiment_id=1") == 200
        for forwarded in ("localhost:8888", "127.0.0.1:8888", "[::1]:8888", "localhost"):
            assert request(address, host=forwarded) == 200
        assert request(f"{address}/api/2.0/mlflow/experiments/get?experiment_id=1", host="evil.example") == 403


@pytest.mark.slow
def test_pages_ask_for_a_password_that_only_its_owner_reads(store: Store) -> None:
    pytest.importorskip("flask_wtf", reason="the extra `server` is not installed")
    make_tables(store)
    assert store.database
    storage = store.database.parent
    with pages(storage, 0, "--auth", "--prefix", "/ml", "--allowed-hosts", "gpu1.example.org") as address:
        folder = storage / "mlflow-auth"
        password = (folder / "admin-password").read_text().strip()
        assert address.endswith("/ml")
        assert request(f"{address}/", host="gpu1.example.org") == 401
        assert request(f"{address}/", host="gpu1.example.org", password=password) == 200
        assert request(f"{address}/", password="wrong-password") == 401
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "admin-password").stat().st_mode & 0o777 == 0o600
        shown = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert "create_app_with_passwords" in shown
        assert password not in shown


TALK = """
import time
for line in range(3000):
    print(f"line {line}", flush=True)
    time.sleep(0.001)
"""


def talkative() -> Server:
    command = [sys.executable, "-c", TALK]
    return Server(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))


@pytest.mark.parametrize("moment", [0.5, 0.7, 0.9, 1.1])
def test_ctrl_c_is_heard_while_a_server_talks(moment: float) -> None:
    talking = talkative()
    threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        talking.watch()
    assert talking.process.poll() is None, "it was heard at the end only"
    talking.end()
    assert talking.process.returncode == -signal.SIGTERM


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def test_a_second_ctrl_c_leaves_no_server_behind() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout and process.stdout.readline(), "it ignores SIGTERM from here on"
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        Server(process).end()
        assert process.poll() == -signal.SIGKILL
    finally:
        process.kill()


@pytest.mark.slow
def test_the_last_line_of_a_server_that_ended_is_kept() -> None:
    talking = talkative()
    talking.watch()
    assert talking.last_line() == "line 2999"


@pytest.mark.slow
def test_pages_of_a_store_that_is_not_there_are_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "ui", "--storage", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: nothing is tracked in {tmp_path}/mlflow.db: train something first, or name the store with --uri\n"
    )
