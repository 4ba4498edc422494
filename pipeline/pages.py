"""MLflow's pages on this machine, until the user has seen enough."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.errors import UserError
from pipeline import tracking

STARTUP_SECONDS = 120


def serve(storage: Path, uri: str | None, port: int, announce: Callable[[str], object]) -> None:
    """Serves the pages of a store, and says where, until the user interrupts or the server ends.

    Args:
        uri: the store; by default the one in `storage`.
        port: a free one is taken instead if it is in use.
        announce: takes the address, once it answers.

    Raises:
        UserError: nothing has been tracked there, or the server does not start.
    """
    store = tracking.Store(uri) if uri else tracking.default_store(storage)
    if store.database and not store.database.exists():
        raise UserError(f"nothing is tracked in {store.database}: train something first, or name the store with --uri")
    port = _free_port(port)
    with _ended_afterwards(tracking.serve(store, port)) as server:
        address = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(server, address)
        announce(f"MLflow shows the runs at {address}{_page(store)} (Ctrl-C ends it)")
        with contextlib.suppress(KeyboardInterrupt):
            server.communicate()


@contextlib.contextmanager
def _ended_afterwards(server: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ends the server's whole process group with the body, and the body quietly if the user interrupts it."""
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield server
    finally:
        for how in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.communicate(timeout=10)


def _page(store: tracking.Store) -> str:
    """Where the runs are: MLflow's first page is about language models."""
    experiment = tracking.newest_experiment(store)
    return f"/#/experiments/{experiment}/runs?workflowType=machine_learning" if experiment else ""


def _wait_until_it_answers(server: subprocess.Popen[bytes], address: str) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            output = server.stdout.read().decode(errors="replace").strip() if server.stdout else ""
            raise UserError(f"MLflow's server ended at once: {(output.splitlines() or ['it said nothing'])[-1]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        time.sleep(0.2)
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
