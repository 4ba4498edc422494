"""A Ray cluster as a user would start it, outside the program that is tested: raylets on this machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
OWN_TITLES = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE")
"""Processes that belong to a cluster at rest."""
EAGER = {"RAY_worker_niceness": "0"}
"""Variables by which Ray's workers do not give way to everybody else, and starve beside another process's tests."""

PROBE = """
import json, ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
from ray.util.state import list_actors
print(json.dumps({
    "cpus": ray.available_resources().get("CPU", 0.0),
    "total": ray.cluster_resources().get("CPU", 0.0),
    "placement_groups": [id for id, one in ray.util.placement_group_table().items() if one["state"] != "REMOVED"],
    "actors": [one.class_name for one in list_actors(address=sys.argv[1], filters=[("state", "!=", "DEAD")])],
}))
"""


@dataclass
class ExternalCluster:
    """Raylets with a few CPUs each, which ask for a token."""

    address: str
    environment: dict[str, str]
    cpus: int
    """Of each node."""
    folder: Path
    launchers: list[subprocess.Popen[bytes]]
    """One a node, the head first."""
    _started: int = 0
    """Nodes that were started, lost ones included."""

    def start(self, *arguments: str) -> None:
        """Starts a node; returns before it has joined, see `wait_for_nodes`."""
        common = [f"--num-cpus={self.cpus}", "--num-gpus=0", "--object-store-memory=150000000", "--disable-usage-stats"]
        common += ["--block", "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
        host = self.address.partition(":")[0]
        command = [RAY, "start", f"--node-ip-address={host}", *arguments, *common]
        self._started += 1
        with self.log.open("ab") as output:
            self.launchers.append(
                subprocess.Popen(command, env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
            )

    def wait_for_nodes(self) -> None:
        """Waits until all nodes that were started have joined. That one is lost, the cluster notices when it likes:
        what it counts at any moment means nothing."""
        _wait(lambda: self.log.read_text(errors="replace").count("Ray runtime started") == self._started, self.log)

    @property
    def log(self) -> Path:
        """What the nodes say while they start."""
        return self.folder / "start.log"

    def add_node(self) -> None:
        """Starts a node beside the head and waits until it has joined."""
        self.start(f"--address={self.address}")
        self.wait_for_nodes()

    def lose_node(self) -> None:
        """Kills the last node that was started, with everything on it, as when its power fails."""
        for process in _family(launcher := self.launchers.pop()):
            _kill(process)
        launcher.wait()

    def state(self) -> dict[str, Any]:
        """CPUs that are free, placement groups and actors that are there, as a program that joins sees them."""
        done = subprocess.run(
            [sys.executable, "-c", PROBE, self.address],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        # Ray may write a line of its own behind it.
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
        state: dict[str, Any] = json.loads(line)
        return state

    def working_processes(self) -> list[str]:
        """Titles of the cluster's processes that do somebody's work."""
        titles = [each for each in map(title, self.processes()) if each.startswith("ray::")]
        return [each for each in titles if not each.startswith(OWN_TITLES)]

    def processes(self) -> list[psutil.Process]:
        """All processes of the cluster: those that were started for it, and what they started."""
        return [process for launcher in self.launchers for process in _family(launcher)]


@contextmanager
def external_cluster(
    nodes: int = 2, cpus: int = 1, variables: Mapping[str, str] | None = None
) -> Iterator[ExternalCluster]:
    """Starts a cluster of so many nodes with so many CPUs each, and ends exactly its processes with the body.

    Args:
        variables: of the environment, for its processes and the programs that join it.
    """
    folder = tempfile.mkdtemp(prefix="pc-", dir="/tmp")  # short: the paths of sockets may have 107 letters
    port, dashboard, client = _free_ports(3)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_period_ms": "1000",  # so that it notices within seconds that a node is gone
        **(variables or {}),
    }
    head = ["--head", f"--port={port}", f"--temp-dir={folder}", f"--ray-client-server-port={client}"]
    head += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    host = socket.gethostbyname(socket.gethostname())
    cluster = ExternalCluster(f"{host}:{port}", environment, cpus, Path(folder), [])
    try:
        cluster.start(*head)
        _wait(lambda: _listens(host, port), cluster.log)
        for _ in range(nodes - 1):
            cluster.start(f"--address={cluster.address}")
        cluster.wait_for_nodes()
        yield cluster
    finally:
        for process in cluster.processes():
            _kill(process)
        for launcher in cluster.launchers:
            launcher.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _family(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        started = psutil.Process(launcher.pid)
        return [started, *started.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def title(process: psutil.Process) -> str:
    """Its command line; nothing, if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _wait(condition: Any, log: Path, timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.3)
