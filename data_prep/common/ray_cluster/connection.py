"""A Ray cluster to work in: one that is already up, or one of our own that ends with the command.

Our own asks for a token, which lives and dies with it: Ray's processes listen on every interface, and would run
anybody's code. It has a dashboard only where the caller needs one, which then listens on the loopback interface alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from data_prep.common import ray_internals, signals
from data_prep.common.distribution import check_worker_packages
from data_prep.common.errors import UserError, first_line
from data_prep.common.ray_cluster import processes

LOOPBACK = "127.0.0.1"

_TOKEN = secrets.token_hex(32)


@dataclass(frozen=True)
class Connection:
    """What this process knows of the cluster that it is connected to."""

    own_cluster: bool = False
    """It was started here, and nothing makes it larger."""
    own_job: bool = False
    """Only this program reserves resources in this process's Ray job."""


@contextmanager
def connect(
    address: str | None, variables: Mapping[str, str] | None = None, *, dashboard: bool = False
) -> Iterator[Connection]:
    """Joins a cluster or starts one, and leaves it (and ends ours) with the body, and no process behind.

    Inside a Ray process, or where the caller has connected already, that connection is used and left open.
    An existing cluster is joined with the authentication that the environment names (RAY_AUTH_MODE, RAY_AUTH_TOKEN).

    Args:
        address: of a cluster that is up; by default that of RAY_ADDRESS, and without it one is started here.
        variables: for the environment, where they are not set.
        dashboard: whether a cluster that is started here gets one; its processes take CPU time.

    Raises:
        UserError: the cluster does not answer, or cannot be started, or its workers would import other packages.
    """
    import ray

    check_worker_packages()
    if ray.is_initialized():
        yield Connection()
        return
    address = address or os.environ.get("RAY_ADDRESS")
    port = _free_port()
    environment = dict(variables or {})
    if not address:
        environment |= {**ray_internals.QUIET, **ray_internals.port_of_cluster(port)}
        if "RAY_AUTH_MODE" not in os.environ:  # else the user has decided
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    mark = secrets.token_hex(16)
    with _environment(environment):
        if address:
            runtime = _runtime(address, mark)
            _init(f"the Ray cluster at {address} cannot be joined", address=address, runtime_env=runtime)
        else:
            with _marked(mark):
                _init(
                    "a local Ray cluster cannot be started",
                    include_dashboard=dashboard,
                    dashboard_host=LOOPBACK,
                    runtime_env=_runtime(f"{LOOPBACK}:{port}", mark),
                )
        try:
            yield Connection(own_cluster=not address, own_job=True)
        finally:
            try:
                if address:
                    processes.end_on_nodes(mark)
            finally:
                ray.shutdown()
                if not address:
                    processes.end_here(mark)


def _init(what: str, **options: Any) -> None:
    import ray

    with (
        warnings.catch_warnings(),
        _signals_as_they_are(),
        signals.kept_from_children(),
        ray_internals.without_log_monitor(),
    ):
        warnings.simplefilter("ignore")
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **options)
        except Exception as error:  # Ray raises whatever its parts raise
            raise UserError(f"{what}: {first_line(error)}") from None


@contextmanager
def _signals_as_they_are() -> Iterator[None]:
    """Keeps what SIGTERM does, which Ray would change to an exit without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _runtime(address: str, mark: str) -> dict[str, Any]:
    """Gives processes of the job their mark, and the address of their cluster, which Ray's clean-up cannot find among
    several."""
    known = ":" in address and "://" not in address
    return {"env_vars": {processes.MARK: mark, **({"RAY_ADDRESS": address} if known else {})}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _marked(mark: str) -> Iterator[None]:
    """Gives the mark to processes that the body starts, whatever mark this process has."""
    before = os.environ.get(processes.MARK)
    os.environ[processes.MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(processes.MARK)
        if before is not None:
            os.environ[processes.MARK] = before


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set, and takes them back."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    ray_internals.reread_authentication()
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        ray_internals.reread_authentication()
