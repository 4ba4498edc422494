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
from pipeline.tracking.mlflow_store.errors import StoreFault
from pipeline.tracking.mlflow_store.store import SETTING, Store, check, default_store, store_of
from tests.helpers.disks import small_disk
from tests.helpers.tracked import make_tables


def test_the_default_store_is_a_database_inside_the_folder_of_the_runs(tmp_path: Path) -> None:
    settings = Settings(data=DataSettings(path="x"), run=RunSettings(storage=str(tmp_path)))
    store = store_of(settings)
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.artifacts == f"file://{tmp_path}/artifacts"
    elsewhere = settings.model_copy(update={"tracking": TrackingSettings(uri="http://server:5000")})
    assert store_of(elsewhere) == Store("http://server:5000")
    assert store_of(elsewhere).artifacts is None


FIRST_USE = """
import sys
from pathlib import Path
from pipeline.tracking.ledger import Target
from pipeline.tracking.mlflow_store.run import open_run
from pipeline.tracking.mlflow_store.store import default_store
store = default_store(Path(sys.argv[1]))
target = Target(uri=store.uri, experiment="new", identity=sys.argv[2], name="n", started_at=1.7e9)
print(open_run(target, store).run_id)
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


def test_a_store_that_is_away_is_no_error_of_the_user_and_a_wrong_address_is() -> None:
    check(Store("http://127.0.0.1:9"))
    with pytest.raises(UserError, match=r"tracking\.uri: nonsense://x"):
        check(Store("nonsense://x", SETTING))


@pytest.fixture
def copied(store: Store, tmp_path: Path) -> Path:
    """The database of a store of its own, as its tables take seconds to make."""
    make_tables(store)
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
    if fault == "garbage":
        copied.write_text("no database")
    if fault == "folder":
        copied.unlink()
        copied.mkdir()
    with contextlib.closing(connection), pytest.raises(UserError, match=message):
        check(default_store(copied.parent, SETTING))


@pytest.mark.slow
def test_a_database_that_is_locked_is_no_error_of_the_user(copied: Path) -> None:
    with contextlib.closing(sqlite3.connect(copied)) as connection:
        connection.execute("begin exclusive")
        check(default_store(copied.parent))
        with pytest.raises(StoreFault, match=r"mlflow\.db is locked by another process"):
            make_tables(default_store(copied.parent))


def test_a_disk_that_is_full_is_named_and_not_the_setting(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        (disk / "others").write_bytes(bytes(900_000))
        with pytest.raises(StoreFault, match=rf"^no space is left on the disk of {disk}/mlflow\.db$"):
            make_tables(default_store(disk))
