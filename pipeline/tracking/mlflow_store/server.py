"""MLflow's web pages on this machine: starts their server, waits until the user interrupts, and ends it."""

from __future__ import annotations

import contextlib
import os
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
from pathlib import Path

from data_prep.common.errors import UserError
from pipeline.tracking.mlflow_store.store import Store, default_store, newest_experiment

STARTUP_SECONDS, END_SECONDS, POLL_SECONDS = 120, 10, 0.2
PORT = 5000


def serve(storage: Path, uri: str | None, port: int | None, announce: Callable[[str], object]) -> None:
    """Serves the pages of a store until the user interrupts or the server ends.

    Args:
        storage: folder of the runs, which holds the default store.
        uri: another store.
        port: of the server; by default PORT, or a free one if that is taken.
        announce: called with the address once the server answers.

    Raises:
        UserError: nothing is tracked in the store, the port is taken, or the server does not start.
    """
    store = Store(uri) if uri else default_store(storage)
    if store.database and not store.database.exists():
        raise UserError(f"nothing is tracked in {store.database}: train something first, or name the store with --uri")
    page = _page(store)  # before the server, whose errors are less clear
    port = _free_port(PORT, 0) if port is None else _free_port(port)
    with _ended_afterwards(Server(_start(store, port))) as server:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(server, address)
        announce(f"MLflow shows the runs at {address}{page} (Ctrl-C ends it)")
        server.watch()


def _start(store: Store, port: int) -> subprocess.Popen[bytes]:
    """Starts MLflow's web server for a store on the loopback interface, as a process group that the caller ends.

    The server answers only requests whose Host header names localhost or 127.0.0.1.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--allowed-hosts", f"127.0.0.1:{port},localhost:{port}"]
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
            "MLFLOW_BACKEND_STORE_URI": store.uri,  # it may hold a password, which all users see in a command line
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # otherwise it starts eight more processes
        },
    )


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
        """Ends the process group by SIGTERM, and by SIGKILL if its output is still open after `END_SECONDS`."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            self._reader.join(END_SECONDS)
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
    experiment = newest_experiment(store)
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning" if experiment else ""


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


def _free_port(*wanted: int) -> int:
    """The first of the ports that is free; 0 stands for any."""
    for port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                free: int = probe.getsockname()[1]
                return free
    raise UserError(f"--port: {wanted[0]} is taken by another program, or not allowed: name another one, or none")
