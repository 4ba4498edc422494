"""Claims about what MLflow holds, with a real store."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from data_prep.common.errors import UserError
from pipeline.config.schema import DataSettings, RunSettings, Settings, TrackingSettings
from pipeline.runs.history import EpochRecord
from pipeline.tracking.mlflow_store.store import Store, default_store, store_of
from tests.helpers.disks import small_disk
from tests.helpers.tracked import EXPECTED, RECORDS, open_run, points, stored


def test_the_default_store_is_a_database_inside_the_folder_of_the_runs(tmp_path: Path) -> None:
    settings = Settings(data=DataSettings(path="x"), run=RunSettings(storage=str(tmp_path)))
    store = store_of(settings)
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifacts == f"file://{tmp_path}/artifacts"
    elsewhere = settings.model_copy(update={"tracking": TrackingSettings(uri="http://server:5000")})
    assert store_of(elsewhere) == Store("http://server:5000")
    assert store_of(elsewhere).artifacts is None


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
from pipeline.tracking.mlflow_store.run import open_run
from pipeline.tracking.mlflow_store.store import default_store
print(open_run(default_store(Path(sys.argv[1])), "new", identity=sys.argv[2], name="n",
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
    client = MlflowClient(tracking_uri=default_store(tmp_path).uri)
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
        ("newer", r"mlflow\.db was written by a newer MLflow than 3\..*: install that one, or set tracking\.uri"),
        (
            "older",
            r"mlflow\.db was written by an older MLflow than 3\..*: end what writes into it, make a backup "
            r"\(cp .*mlflow\.db .*mlflow\.db\.backup\) and run 'mlflow db upgrade sqlite:////.*mlflow\.db'",
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
    if fault in ("newer", "older"):
        version = "ffffffffffff" if fault == "newer" else "cc1f77228345"
        connection.execute("update alembic_version set version_num = ?", (version,))
        connection.commit()
    if fault == "locked":
        connection.execute("begin exclusive")
    if fault == "garbage":
        copied.write_text("no database")
    if fault == "folder":
        copied.unlink()
        copied.mkdir()
    with contextlib.closing(connection), pytest.raises(UserError, match=message):
        open_run(default_store(copied.parent), "a")


def test_a_disk_that_is_full_is_named_and_not_the_setting(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        (disk / "others").write_bytes(bytes(900_000))
        full = rf"^no space is left on the disk of {disk}/mlflow\.db: free disk space, then rerun the same command$"
        with pytest.raises(UserError, match=full):
            open_run(default_store(disk), "a")
