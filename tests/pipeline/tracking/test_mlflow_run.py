"""Claims about what MLflow holds, with a real store: SQLite, and a server that goes away and comes back."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from data_prep.common.errors import UserError
from pipeline.config.schema import DataSettings, RunSettings, Settings, TrackingSettings
from pipeline.runs.history import EpochRecord
from pipeline.tracking import mlflow_run, mlflow_server
from pipeline.tracking.mlflow_run import Store, Tracker
from pipeline.tracking.mlflow_server import Server
from tests.helpers.disks import small_disk

RECORDS = [EpochRecord(epoch, 1.7e9 + epoch, {"train/loss": 1 / epoch, "epoch": epoch}) for epoch in (1, 2, 3)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An SQLite store: its tables take seconds to make, so the tests share it."""
    return mlflow_run.default_store(tmp_path_factory.mktemp("runs"))


def open_run(store: Store, identity: str) -> Tracker:
    return mlflow_run.open_run(
        store,
        "experiment",
        identity=identity,
        name=f"name of {identity}",
        folder=Path("f"),
        parameters={"training.epochs": 3, "model.widths": [8, 8]},
        tags={"color": "blue"},
    )


def stored(store: Store, run_id: str) -> Run:
    return MlflowClient(tracking_uri=store.uri).get_run(run_id)


def points(store: Store, run_id: str, key: str = "train/loss") -> list[tuple[int, float, int]]:
    """(step, value, time in milliseconds) of each stored measurement."""
    found = MlflowClient(tracking_uri=store.uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in found)


EXPECTED = [(record.epoch, 1 / record.epoch, int(record.finished_at * 1000)) for record in RECORDS]


def test_the_default_store_is_a_database_inside_the_folder_of_the_runs(tmp_path: Path) -> None:
    settings = Settings(data=DataSettings(path="x"), run=RunSettings(storage=str(tmp_path)))
    store = mlflow_run.store_of(settings)
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifacts == f"file://{tmp_path}/artifacts"
    elsewhere = settings.model_copy(update={"tracking": TrackingSettings(uri="http://server:5000")})
    assert mlflow_run.store_of(elsewhere) == Store("http://server:5000")
    assert mlflow_run.store_of(elsewhere).artifacts is None


def test_a_run_holds_its_settings_tags_name_and_files(store: Store, tmp_path: Path) -> None:
    tracker = open_run(store, "a")
    (tmp_path / "weights").write_bytes(b"123")
    assert tracker.log_text("a: 1\n", "settings.yaml")
    assert tracker.log_file(tmp_path, "model")
    assert tracker.tag({"hardware.cpu": "fast"})
    assert tracker.end("FINISHED")
    run = stored(store, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "name of a"
    assert run.data.params == {"training.epochs": "3", "model.widths": "[8, 8]"}
    assert run.data.tags["color"] == "blue"
    assert run.data.tags["hardware.cpu"] == "fast"
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert store.database and folder.is_relative_to(store.database.parent)
    assert (folder / "settings.yaml").read_text() == "a: 1\n"
    assert (folder / "model" / "weights").read_bytes() == b"123"


def test_resuming_continues_the_same_run_without_duplicates_or_gaps(store: Store) -> None:
    first = open_run(store, "b")
    assert first.follow(RECORDS[:2])
    first.end("KILLED")
    second = open_run(store, "b")
    assert second.run_id == first.run_id
    assert not second.finished
    assert stored(store, second.run_id).info.status == "RUNNING"
    assert second.follow(RECORDS)
    assert second.follow(RECORDS)
    assert points(store, second.run_id) == EXPECTED
    assert open_run(store, "another").run_id != first.run_id


def test_a_finished_run_stays_finished_when_it_is_opened(store: Store) -> None:
    open_run(store, "c").end("FINISHED")
    again = open_run(store, "c")
    assert again.finished
    assert stored(store, again.run_id).info.status == "FINISHED"


def test_long_histories_are_sent_whole(store: Store) -> None:
    records = [EpochRecord(epoch, 1e9 + epoch, {f"m{i}": float(epoch) for i in range(12)}) for epoch in range(1, 120)]
    tracker = open_run(store, "d")
    assert tracker.follow(records)
    assert len(points(store, tracker.run_id, "m11")) == 119


FIRST_USE = """
import sys
from pathlib import Path
from pipeline.tracking import mlflow_run, mlflow_server
print(mlflow_run.open_run(mlflow_run.default_store(Path(sys.argv[1])), "new", identity=sys.argv[2], name="n",
                        folder=Path("f"), parameters={}, tags={}).run_id)
"""


@pytest.mark.slow
def test_two_processes_may_be_the_first_to_use_a_store(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FIRST_USE, str(tmp_path), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    results = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    client = MlflowClient(tracking_uri=mlflow_run.default_store(tmp_path).uri)
    assert {client.get_run(output.strip()).info.experiment_id for output, _ in results} == {"1"}


@pytest.mark.slow
def test_a_store_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"tracking\.uri: http://127\.0\.0\.1:9 is unreachable"):
        open_run(Store("http://127.0.0.1:9"), "a")
    with pytest.raises(UserError, match=r"tracking\.uri: nonsense://x"):
        open_run(Store("nonsense://x"), "a")


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Path:
    """The database of a store of its own, as its tables take seconds to make."""
    open_run(store, "a")
    assert store.database
    shutil.copy(store.database, tmp_path / "mlflow.db")
    return tmp_path / "mlflow.db"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "version",
            r"mlflow\.db was written by another version of MLflow: .*mlflow db upgrade sqlite:////.*mlflow\.db'",
        ),
        pytest.param(
            "locked",
            r"mlflow\.db is locked by another process: rerun the same command when it has ended",
            marks=pytest.mark.slow,
        ),
        ("garbage", r"mlflow\.db is no SQLite database, or is damaged: move it away"),
        pytest.param(
            "folder", r"mlflow\.db cannot be used \(Is a directory\): check the file and its folder", id="folder"
        ),
    ],
)
def test_a_database_that_cannot_be_used_is_named_with_its_fault(copied: Path, fault: str, message: str) -> None:
    connection = sqlite3.connect(copied)
    if fault == "version":
        connection.execute("update alembic_version set version_num = 'ffffffffffff'")
        connection.commit()
    if fault == "locked":
        connection.execute("begin exclusive")
    if fault == "garbage":
        copied.write_text("no database")
    if fault == "folder":
        copied.unlink()
        copied.mkdir()
    with contextlib.closing(connection), pytest.raises(UserError, match=message):
        open_run(mlflow_run.default_store(copied.parent), "a")


def test_a_disk_that_is_full_is_named_and_not_the_setting(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        (disk / "others").write_bytes(bytes(900_000))
        full = rf"^no space is left on the disk of {disk}/mlflow\.db: free disk space, then rerun the same command$"
        with pytest.raises(UserError, match=full):
            open_run(mlflow_run.default_store(disk), "a")


def test_a_port_that_is_taken_is_named(store: Store) -> None:
    open_run(store, "makes the tables")
    assert store.database
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^--port: {port} is taken by another program"):
            mlflow_server.serve(store.database.parent, None, port, announce=print)


@contextlib.contextmanager
def pages(storage: Path, port: int) -> Iterator[str]:
    """``phasecollapse ui`` as a user starts it, ended by Ctrl-C; gives the address that it prints."""
    command = [sys.executable, "-m", "pipeline.cli.main", "ui", "--storage", str(storage), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stderr
            line = process.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+", line)
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


def request(address: str, host: str | None = None) -> int:
    """The HTTP status of an answer."""
    try:
        asked = urllib.request.Request(address, headers={"Host": host} if host else {})
        with urllib.request.urlopen(asked, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.slow
def test_a_server_that_goes_away_stops_nothing_and_gets_what_it_missed(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.database
    open_run(store, "makes the tables")
    storage = store.database.parent
    with pages(storage, 0) as address:
        assert request(address) == 200
        assert request(f"{address}/api/2.0/mlflow/experiments/get?experiment_id=1") == 200
        assert request(f"{address}/api/2.0/mlflow/experiments/get?experiment_id=1", host="evil.example") == 403
        tracker = open_run(Store(address), "e")
        assert tracker.follow(RECORDS[:1])
        port = int(address.rsplit(":", 1)[1])
    with caplog.at_level(logging.WARNING):
        started = time.monotonic()
        assert not tracker.follow(RECORDS[:2])
        assert not tracker.follow(RECORDS)
        assert not tracker.end("FINISHED")
        assert time.monotonic() - started < 60
    assert [re.sub(r"\(.*\)", "()", message) for message in caplog.messages] == [
        f"tracking.uri: {address} is unreachable (): training continues, and the missing metrics are sent when it "
        "answers again, or when the same command is rerun"
    ]
    with pages(storage, port) as again:
        assert again == address
        assert tracker.follow(RECORDS)
    assert points(store, tracker.run_id) == EXPECTED


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
    server = talkative()
    threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        server.watch()
    assert server.process.poll() is None, "it was heard at the end only"
    server.end()
    assert server.process.returncode == -signal.SIGTERM


@pytest.mark.slow
def test_the_last_line_of_a_server_that_ended_is_kept() -> None:
    server = talkative()
    server.watch()
    assert server.last_line() == "line 2999"


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
