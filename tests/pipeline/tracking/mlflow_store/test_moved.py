"""Claims about a folder of runs that was moved or copied: artifacts are found, and written where the folder is now."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking.mlflow_store import moved
from pipeline.tracking.mlflow_store.store import Store, connect, default_store
from tests.helpers.disks import fill, small_disk
from tests.helpers.tracked import open_run


@pytest.fixture
def here(store: Store, tmp_path: Path) -> Path:
    """A folder with a store of its own and one run, which has an artifact and a version of a model."""
    open_run(store, "first")
    assert store.database
    folder = tmp_path / "here with space"
    folder.mkdir()
    shutil.copy(store.database, folder / "mlflow.db")
    (folder / "artifacts").mkdir()
    own = default_store(folder)
    tracker = open_run(own, "kept")
    run_folder = MlflowClient(own.uri).get_run(tracker.run_id).info.artifact_uri
    assert run_folder == f"{folder.as_uri()}/artifacts/{tracker.run_id}/artifacts"
    model = folder / "artifacts" / tracker.run_id / "artifacts" / "model"
    model.mkdir(parents=True)
    (model / "weights").write_text("weights")
    for backup in folder.glob("mlflow-before-move-*"):  # of the copy above
        backup.unlink()
    client = MlflowClient(own.uri, own.uri)
    client.create_registered_model("net")
    client.create_model_version("net", f"{run_folder}/model", tracker.run_id)
    return folder


def test_a_moved_store_finds_its_artifacts_and_writes_new_ones_where_it_is(here: Path) -> None:
    there = here.rename(here.with_name("there"))
    store = default_store(there)
    found = connect(store).get_model_version("net", "1").source
    assert found.startswith(f"{there.as_uri()}/artifacts/")
    assert (there / Path(found).relative_to(Path(there.as_uri())) / "weights").read_text() == "weights"
    (backup,) = there.glob("mlflow-before-move-*.db")
    with sqlite3.connect(backup) as before:
        assert before.execute("SELECT source FROM model_versions").fetchone()[0].startswith(here.as_uri())
    for identity in ("kept", "new"):
        tracker = open_run(store, identity)
        tracker.log_text("1", "more")
        assert (
            MlflowClient(store.uri).get_run(tracker.run_id).info.artifact_uri.startswith(f"{there.as_uri()}/artifacts/")
        )
    assert not here.exists()
    assert list(there.glob("mlflow-before-move-*.db")) == [backup], "moved once"


def test_a_copied_store_is_separate(here: Path) -> None:
    there = shutil.copytree(here, here.with_name("copy"))
    tracker = open_run(default_store(there), "kept")
    tracker.log_text("1", "more")
    assert len(list(there.glob("artifacts/*/artifacts/more"))) == 1
    assert not list(here.glob("artifacts/*/artifacts/more"))


def test_a_store_reached_by_another_path_and_artifacts_elsewhere_stay(here: Path, tmp_path: Path) -> None:
    (link := tmp_path / "link").symlink_to(here)
    open_run(default_store(link), "kept")
    (elsewhere := tmp_path / "big" / "artifacts").mkdir(parents=True)
    store = default_store(here)
    MlflowClient(store.uri).create_experiment("elsewhere", artifact_location=elsewhere.as_uri())
    open_run(store, "kept")
    assert MlflowClient(store.uri).get_experiment_by_name("elsewhere").artifact_location == elsewhere.as_uri()
    assert not list(here.glob("mlflow-before-move-*"))


def test_a_full_disk_is_said_once_and_the_move_is_followed_later(
    here: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        there = Path(shutil.copytree(here, disk / "runs"))
        shutil.rmtree(here)
        filler = fill(disk)
        assert [moved.follow(there / "mlflow.db") for _ in range(3)] == [None] * 3
        (warning,) = caplog.messages
        assert warning.endswith("and its artifacts are looked for there (database or disk is full)")
        filler.unlink()
        assert moved.follow(there / "mlflow.db")
