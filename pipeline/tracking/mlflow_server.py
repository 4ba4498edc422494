"""MLflow's pages on this machine, until the user has seen enough."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.common.errors import UserError
from pipeline.tracking import mlflow_run

STARTUP_SECONDS, END_SECONDS, LOOK_SECONDS = 120, 10, 0.2


def serve(storage: Path, uri: str | None, port: int, announce: Callable[[str], object]) -> None:
    """Serves the pages of a store, and says where, until the user interrupts or the server ends.

    Args:
        uri: the store; by default the one in `storage`.
        port: a free one is taken instead if it is in use.
        announce: takes the address, once it answers.

    Raises:
        UserError: nothing has been tracked there, or the server does not start.
    """
    store = mlflow_run.Store(uri) if uri else mlflow_run.default_store(storage)
    if store.database and not store.database.exists():
        raise UserError(f"nothing is tracked in {store.database}: train something first, or name the store with --uri")
    port = _free_port(port)
    with _ended_afterwards(Server(mlflow_run.serve(store, port))) as server:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(server, address)
        announce(f"MLflow shows the runs at {address}{_page(store)} (Ctrl-C ends it)")
        server.watch()


class Server:
    """A process that leads a group of its own and may say more than anybody wants to read; its last line is kept."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._last: deque[bytes] = deque(maxlen=1)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        if self.process.stdout:
            with self.process.stdout as said:
                self._last.extend(said)

    def watch(self) -> None:
        """Returns when it has ended.

        The main thread must not read what a process says: between two reads that both find something, Python does not
        look for signals, and a Ctrl-C that comes there is heard after the next read, which may wait for ever.
        """
        while self.process.poll() is None:
            time.sleep(LOOK_SECONDS)

    def last_line(self) -> str:
        """Of one that has ended."""
        self._reader.join()
        return self._last[0].decode(errors="replace").strip() if self._last else "it said nothing"

    def end(self) -> None:
        """Ends the whole group: after SIGTERM it has a while, until its output closes, then it is killed."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how)
            self._reader.join(END_SECONDS)
        self.process.wait()


@contextlib.contextmanager
def _ended_afterwards(server: Server) -> Iterator[Server]:
    """Ends the server with the body, and the body quietly if the user interrupts it."""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield server
    finally:
        server.end()


def _page(store: mlflow_run.Store) -> str:
    """Where the runs are: MLflow's first page is about language models."""
    experiment = mlflow_run.newest_experiment(store)
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning" if experiment else ""


def _wait_until_it_answers(server: Server, address: str) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise UserError(f"MLflow's server ended at once: {server.last_line()}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        time.sleep(LOOK_SECONDS)
    raise UserError(f"MLflow's server does not answer at {address} after {STARTUP_SECONDS} s")


def _free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else any port that is free."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                free: int = probe.getsockname()[1]
                return free
    raise UserError("--port: this machine has no free port")
