"""Claims about copies of runs in object storage, over HTTP."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector

from data_prep.common.errors import UserError
from data_prep.common.storage import resolve
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.launch import launcher
from pipeline.runs import paths, remote_copy
from pipeline.runs.train_state import TrainState
from pipeline.training import checkpointer
from pipeline.training.context import LocalContext
from tests.helpers.object_storage import SECRETS, Storage, object_storage
from tests.helpers.runs import assert_same_bits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def storage() -> Storage:
    with object_storage() as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def settings(textures: Path, tmp_path: Path) -> Callable[..., Settings]:
    content = {
        "data": {"path": str(textures), "image_size": 16, "flip": False},
        "run": {"storage": str(tmp_path / "runs"), "name": "uploaded"},
        "model": {"widths": [4]},
        "optimizer": {"learning_rate": 0.01},
        "training": {"epochs": 3, "batch_size": 40},
        "cluster": {"workers": 0},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    return lambda *overrides: settings_io.resolve(Settings, settings_io.override(content, overrides), "test")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_copies_are_those_of_what_is_kept(settings: Callable[..., Settings], storage: Storage, tmp_path: Path) -> None:
    address = storage.without_key("kept")
    run = launcher.train(settings(f"checkpoint.upload={address}", "checkpoint.every_steps=2"), progress=False).folder
    location = remote_copy.location_of(address, run)
    assert remote_copy.checkpoints_at(location) == {path.name for path in paths.stored_checkpoints(run)}
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    remote_copy.fetch_identity(location, fetched)
    newest = remote_copy.fetch_newest(location, fetched)
    assert newest == paths.stored_checkpoints(run)[-1].name
    assert files(fetched / "checkpoints" / newest) == files(run / "checkpoints" / newest)
    assert (fetched / paths.IDENTITY).read_bytes() == (run / paths.IDENTITY).read_bytes()
    assert remote_copy.fetch_newest(location, fetched) is None, "it is there already"
    assert not (run / paths.EVENTS).exists()


def test_a_run_whose_folder_is_gone_resumes_to_the_same_bits(
    settings: Callable[..., Settings], storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stops(LocalContext):
        def report(self, metrics: dict[str, float]) -> None:
            raise KeyboardInterrupt

    alone = launcher.train(settings("run.name=alone"), progress=False)
    option = f"checkpoint.upload={storage.without_key('gone')}"
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "LocalContext", Stops)
        with pytest.raises(KeyboardInterrupt):
            launcher.train(settings(option), progress=False)
    run = tmp_path / "runs" / "uploaded"
    before = (run / paths.IDENTITY).read_text()
    shutil.rmtree(run)
    with pytest.raises(UserError, match=r"started with other settings \(training\.seed: 0 → 1\)"):
        launcher.train(settings(option, "training.seed=1"), progress=False)
    shutil.rmtree(run)
    resumed = launcher.train(settings(option), progress=False)
    assert_same_bits(alone.folder, resumed.folder)
    assert (run / paths.IDENTITY).read_text() == before
    assert "checkpoint epoch-00001 was fetched from" in (run / paths.EVENTS).read_text()
    assert len(resumed.metrics) == len(alone.metrics)


def test_a_damaged_copy_is_not_used(settings: Callable[..., Settings], storage: Storage, tmp_path: Path) -> None:
    address = storage.without_key("damaged")
    run = launcher.train(settings(f"checkpoint.upload={address}"), progress=False).folder
    before, last = paths.stored_checkpoints(run)[-2:]
    (run / "checkpoints" / last.name / paths.MODEL).write_bytes(b"nonsense")
    storage.upload(last, f"damaged/{run.name}/checkpoints/{last.name}")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert remote_copy.fetch_newest(remote_copy.location_of(address, run), fetched) == before.name


def test_the_newest_whole_checkpoint_of_both_places_is_taken(
    settings: Callable[..., Settings], storage: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stops(LocalContext):
        def report(self, metrics: dict[str, float]) -> None:
            if metrics["epoch"] == 2:
                raise KeyboardInterrupt

    alone = launcher.train(settings("run.name=alone"), progress=False)
    option, run = f"checkpoint.upload={storage.without_key('both')}", tmp_path / "runs" / "uploaded"
    half = tmp_path / "half"
    half.mkdir()
    (half / paths.MODEL).touch()
    storage.upload(half, "both/uploaded/checkpoints/epoch-00000-step-0000001")  # an upload that was interrupted
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "LocalContext", Stops)
        with pytest.raises(KeyboardInterrupt):
            launcher.train(settings(option), progress=False)
    (run / "checkpoints" / "epoch-00002" / paths.MODEL).write_bytes(b"nonsense")
    resumed = launcher.train(settings(option), progress=False)
    assert "checkpoint epoch-00002 was fetched from" in (run / paths.EVENTS).read_text()
    assert_same_bits(alone.folder, resumed.folder)
    filesystem, root = resolve(remote_copy.location_of(storage.without_key("both"), run))
    there = filesystem.get_file_info(FileSelector(f"{root}/checkpoints"))
    assert {info.base_name for info in there} == {path.name for path in paths.stored_checkpoints(run)}


def test_no_copy_that_is_later_than_all_checkpoints_is_removed(
    settings: Callable[..., Settings], storage: Storage
) -> None:
    address = storage.without_key("later-copies")
    run = launcher.train(settings(f"checkpoint.upload={address}"), progress=False).folder
    last = paths.stored_checkpoints(run)[-1]
    shutil.rmtree(last)
    location, problems = remote_copy.location_of(address, run), list[str]()
    uploads = remote_copy.Uploads(location, run, problems.append)
    uploads.follow()
    uploads.close()
    assert not problems and last.name in remote_copy.checkpoints_at(location)


def test_storage_that_goes_away_before_a_restart_ends_no_run(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that are replaced restore a checkpoint again, long after the storage answered to the command."""
    restore = checkpointer.Checkpointer.restore
    with ExitStack() as server:
        address = server.enter_context(object_storage()).without_key("later")

        def unplugged(self: checkpointer.Checkpointer, state: TrainState) -> None:
            server.close()
            restore(self, state)

        monkeypatch.setattr(checkpointer.Checkpointer, "restore", unplugged)
        finished = launcher.train(settings(f"checkpoint.upload={address}"), progress=False)
    assert finished.epochs == 3
    assert "is unreachable" in (finished.folder / paths.EVENTS).read_text()


def test_storage_that_goes_away_stops_no_run_but_must_be_there_when_one_starts(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as server:
        address = server.enter_context(object_storage()).without_key("away")

        class Unplugs(LocalContext):
            def report(self, metrics: dict[str, float]) -> None:
                server.close()

        with monkeypatch.context() as patch:
            patch.setattr(launcher, "LocalContext", Unplugs)
            finished = launcher.train(settings(f"checkpoint.upload={address}"), progress=False)
    assert finished.epochs == 3
    assert "checkpoint.upload: s3://images/away" in (finished.folder / paths.EVENTS).read_text()
    with pytest.raises(UserError, match=r"checkpoint\.upload: s3://images/away.* is unreachable"):
        launcher.train(settings(f"checkpoint.upload={address}", "run.name=another"), progress=False)


def test_keys_stay_out_of_settings(settings: Callable[..., Settings], storage: Storage) -> None:
    with pytest.raises(UserError, match="upload must not hold a password or key"):
        settings(f"checkpoint.upload={storage.location('x')}")
