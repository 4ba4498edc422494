"""Runs as a worker writes them, a real MLflow server, and what a store holds of a run."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.runs import history, paths
from pipeline.runs.history import EpochRecord, StepLog, StepRecord
from pipeline.tracking import ledger
from pipeline.tracking.ledger import Target
from pipeline.tracking.mlflow_store import run
from pipeline.tracking.mlflow_store.run import Tracker
from pipeline.tracking.mlflow_store.store import Store

START = 1.7e9
"""When the runs began, in seconds since 1970."""
STEPS = 5
"""Of an epoch; each has a record."""


def write_run(folder: Path, uri: str, **changes: Any) -> Path:
    """The folder of a run that has begun."""
    folder.mkdir(parents=True)
    (folder / paths.IDENTITY).touch()
    content: dict[str, Any] = {
        "uri": uri,
        "experiment": "experiment",
        "identity": f"identity of {folder.name}",
        "name": folder.name,
        "started_at": START,
        "parameters": {"training.epochs": "3", "model.widths": "[8, 8]"},
        "tags": {"color": "blue"},
        "settings": "a: 1\n",
    }
    ledger.write_target(folder, Target(**{**content, **changes}))
    return folder


def train(folder: Path, epochs: int) -> None:
    """Writes the records of further epochs, as workers do."""
    log, known = StepLog(folder, 1), history.read(folder)
    first = len(known) + 1
    for epoch in range(first, first + epochs):
        for step in range((epoch - 1) * STEPS + 1, epoch * STEPS + 1):
            log.add(StepRecord(step, START + step, {"step/loss": 1 / step}))
        log.flush()
        known.append(
            EpochRecord(epoch, START + epoch * STEPS, {"train/loss": 1 / epoch, "epoch": epoch}, epoch * STEPS)
        )
        history.write(folder, known)


def end(folder: Path, status: ledger.Status = "FINISHED") -> None:
    """Notes that the run has ended, with a file to deliver."""
    (folder / paths.REPORT).mkdir(exist_ok=True)
    (folder / paths.REPORT / "evaluation.json").write_text("{}")
    ledger.end(folder, status, START + 1000, {}, models=False)


def rows_of(folder: Path) -> set[tuple[str, int, int, float]]:
    """(name, time in ms, step, value) of all metrics that the folder holds."""
    epochs = [(one.metrics, one.finished_at, one.step) for one in history.read(folder)]
    steps = [(one.metrics, one.recorded_at, one.step) for one in history.read_steps(folder)]
    return {
        (name, int(at * 1000), step or 0, value)
        for metrics, at, step in [*epochs, *steps]
        for name, value in metrics.items()
    }


class Stored(NamedTuple):
    """What a store holds of a run."""

    status: str
    rows: list[tuple[str, int, int, float]]
    artifacts: set[str]


def stored(database: Path, artifacts: Path, name: str) -> Stored:
    """What an SQLite database and a folder of artifacts hold of a run, which exists once."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        ((run_id, status),) = connection.execute("select run_uuid, status from runs where name = ?", [name]).fetchall()
        rows = connection.execute("select key, timestamp, step, value from metrics where run_uuid = ?", [run_id])
        found = rows.fetchall()
    files = {
        str(file.relative_to(folder)) for folder in artifacts.glob(f"**/{run_id}/artifacts") for file in _files(folder)
    }
    return Stored(status, found, files)


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def open_run(store: Store, identity: str) -> Tracker:
    """A tracked run without a folder."""
    target = Target(uri=store.uri, experiment="experiment", identity=identity, name=identity, started_at=START)
    return run.open_run(target, store)


def make_tables(store: Store) -> None:
    """Opens a run, for which an SQLite database gets its tables and the experiment 1."""
    open_run(store, "tables")


def find(store: Store, name: str) -> Run:
    """The tracked run with this name."""
    (run,) = MlflowClient(store.uri).search_runs(["1"], f"attributes.run_name = '{name}'")
    return run


class MlflowServer:
    """``mlflow server`` with an SQLite database, in a folder of its own; not started yet."""

    def __init__(self, folder: Path) -> None:
        self.database, self.artifacts = folder / "server.db", folder / "artifacts"
        self._log = folder / "log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it unless it runs, and waits until it answers."""
        if self._process:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self.artifacts)]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def signal(self, number: int) -> None:
        """Sends a signal to it and all its processes."""
        if self._process:
            os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """Ends it as a power failure does."""
        if self._process:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
