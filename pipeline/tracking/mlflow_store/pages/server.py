"""MLflow's web pages on this machine: starts their server, waits until the user interrupts, and ends it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.common import signals
from data_prep.common.errors import UserError
from pipeline.tracking.mlflow_store import saved_views
from pipeline.tracking.mlflow_store.pages import app, auth
from pipeline.tracking.mlflow_store.store import Store, shown_experiment

STARTUP_SECONDS, END_SECONDS, POLL_SECONDS = 120, 10, 0.2
PORT = 5000
LOOPBACK = "127.0.0.1"
LOOPBACKS = (LOOPBACK, "localhost", "::1")
EVERY_INTERFACE = ("0.0.0.0", "::", "")
LOOPBACK_HOSTS = ("localhost", "localhost:*", LOOPBACK, f"{LOOPBACK}:*", "[::1]", "[[]::1]:*")
"""Host headers of the loopback interface, as patterns; with any port, as ports are forwarded under others."""


@dataclass(frozen=True)
class Access:
    """How the pages are reached, and by whom."""

    folder: Path
    """Of the runs; users and passwords lie in a folder in it."""
    port: int | None = None
    """By default PORT, or a free one if that is taken; 0 stands for any."""
    host: str = LOOPBACK
    """Interface to listen on."""
    allowed_hosts: str | None = None
    """Names of this machine in browsers besides those of the loopback interface, with commas between them."""
    prefix: str | None = None
    """Path before all addresses, such as ``/mlflow``."""
    auth: bool = False
    """Whether to ask for user and password."""


def serve(store: Store, access: Access, announce: Callable[[str], object]) -> None:
    """Serves the pages of a store until the user interrupts or the server ends; those of a tracking server it names.

    Args:
        store: a database, or a server, which has pages of its own.
        access: how the pages are reached.
        announce: called with the address once the server answers.

    Raises:
        UserError: nothing is tracked in the store, the options do not fit, the port is taken, or the server does not
            start.
    """
    if store.database and not store.database.exists():
        raise UserError(f"nothing is tracked in {store.database}: train something first, or name the store with --uri")
    prefix = _checked_prefix(access)
    page = _page(store)  # before the server, whose errors are less clear
    if store.uri.startswith("http"):
        announce(f"the tracking server shows the runs at {store.uri.rstrip('/')}{page}")
        return
    users = auth.prepare(access.folder) if access.auth else None
    port = _free_port(access.host, PORT, 0) if access.port is None else _free_port(access.host, access.port)
    with _ended_afterwards(Server(_start(store, access, port, users))) as server:
        _wait_until_it_answers(server, f"http://{_reachable(access.host)}:{port}{prefix}")
        if users:
            announce(users.sentence())
        announce(f"MLflow shows the runs at http://{_reachable(access.host)}:{port}{prefix}{page} (Ctrl-C ends it)")
        server.watch()


def _checked_prefix(access: Access) -> str:
    """The prefix of all addresses, empty without one.

    Raises:
        UserError: it is no path, or the pages would be open to others without a password.
    """
    if access.host not in LOOPBACKS and not access.auth:
        raise UserError(
            f"--host {access.host} opens the pages, with the right to delete runs, to other machines: add --auth, or "
            "leave --host out and forward the port (ssh -L 5000:localhost:5000)"
        )
    if access.prefix is not None and not re.fullmatch(r"(/[\w.~-]+)+", access.prefix):
        raise UserError(f"--prefix: {access.prefix} must be a path such as /mlflow, without a slash at its end")
    return access.prefix or ""


def _start(store: Store, access: Access, port: int, users: auth.Access | None) -> subprocess.Popen[bytes]:
    """Starts MLflow's web server for a store, as a process group that the caller ends."""
    named = [one.strip() for one in (access.allowed_hosts or "").split(",") if one.strip()]
    names = [*named, *([] if access.host in LOOPBACKS else [socket.gethostname()])]
    if access.host not in (*LOOPBACKS, *EVERY_INTERFACE):
        names.append(access.host)
    hosts = [host for name in names for host in (name, f"{name}:*")]
    origins = [f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
    command = [sys.executable, "-m", "mlflow", "server", "--host", access.host, "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", ",".join([*LOOPBACK_HOSTS, *hosts])]
    if origins:
        command += ["--cors-allowed-origins", ",".join(origins)]
    if access.prefix:
        command += ["--static-prefix", access.prefix]
    if chosen := app.name(passwords=users is not None) or (users and auth.APP):
        command += ["--app-name", chosen]
    if store.artifacts:
        command += ["--default-artifact-root", store.artifacts, "--no-serve-artifacts"]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={
            **os.environ,
            **(users.environment if users else {}),
            "MLFLOW_BACKEND_STORE_URI": store.uri,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # otherwise it starts eight more processes
        },
    )


def _reachable(host: str) -> str:
    """An address at which this machine reaches a server that listens on `host`."""
    host = LOOPBACK if host in EVERY_INTERFACE else host
    return f"[{host}]" if ":" in host else host


class Server:
    """A process that leads a process group. Its output is read, and only the last line is kept.

    Args:
        process: started with its output in a pipe.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._last: deque[bytes] = deque(maxlen=1)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self.process.stdout:
            with self.process.stdout as output:
                self._last.extend(output)

    def watch(self) -> None:
        """Waits until the process ends.

        A thread of its own reads the output, not the main thread: between two reads that return at once, Python handles
        no signals, so a Ctrl-C would wait for the next read, which may block for ever.
        """
        while self.process.poll() is None:
            time.sleep(POLL_SECONDS)

    def last_line(self) -> str:
        """The last line of the output of a process that has ended."""
        self._reader.join()
        return self._last[0].decode(errors="replace").strip() if self._last else "no output"

    def end(self) -> None:
        """Ends the process group by SIGTERM, and by SIGKILL if its output is still open after `END_SECONDS`, or at once
        if the user interrupts again."""
        hurry = threading.Event()
        with signals.handled(lambda number, frame: hurry.set()):
            for how in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, how)
                deadline = time.monotonic() + END_SECONDS
                while self._reader.is_alive() and not hurry.is_set() and time.monotonic() < deadline:
                    self._reader.join(POLL_SECONDS)
            self.process.wait()


@contextlib.contextmanager
def _ended_afterwards(server: Server) -> Iterator[Server]:
    """Ends the server after the body; a KeyboardInterrupt ends the body without an error."""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield server
    finally:
        server.end()


def _page(store: Store) -> str:
    """Path of the page that lists the runs; MLflow's start page is about language models."""
    experiment = shown_experiment(store)
    if experiment is None:
        return ""
    view = saved_views.RUNS
    shown = f"viewStateShareKey={view}&" if saved_views.PREFIX + view in experiment.tags else ""
    return f"/#/experiments/{experiment.experiment_id}/runs?{shown}{saved_views.PAGES_FOR_TRAINING}"


def _wait_until_it_answers(server: Server, address: str) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise UserError(f"MLflow's server ended at once: {server.last_line()}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        time.sleep(POLL_SECONDS)
    raise UserError(f"MLflow's server does not answer at {address} after {STARTUP_SECONDS} s")


def _free_port(host: str, *wanted: int) -> int:
    """The first of the ports that is free; 0 stands for any."""
    for port in wanted:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                free: int = probe.getsockname()[1]
                return free
    raise UserError(f"--port: {wanted[0]} is taken by another program, or not allowed: name another one, or none")
