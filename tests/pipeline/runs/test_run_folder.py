"""Claims about the identity of a run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import UserError
from data_prep.format.manifest import Manifest, load_manifest
from pipeline.config.schema import Settings
from pipeline.config.settings_io import flatten, override, resolve
from pipeline.runs import history, paths
from pipeline.runs.history import EpochRecord
from pipeline.runs.run_folder import EXECUTION_ONLY, claim, default_name
from tests.helpers.disks import fill, small_disk


@pytest.fixture
def data(textures: Path) -> Manifest:
    return load_manifest(textures)


def settings(folder: Path, *assignments: str) -> Settings:
    content: dict[str, Any] = {
        "data": {"path": "anywhere"},
        "run": {"storage": str(folder)},
        "model": {"widths": [8, 16, 16], "skip": True},
    }
    return resolve(Settings, override(content, assignments), "test")


def another(data: Manifest) -> Manifest:
    """A data set of other images."""
    train = data.splits["train"]
    parts = [train.parts[0].model_copy(update={"sha256": "0" * 64}), *train.parts[1:]]
    return data.model_copy(update={"splits": {**data.splits, "train": train.model_copy(update={"parts": parts})}})


def test_the_default_name_states_data_set_network_and_settings(data: Manifest, tmp_path: Path) -> None:
    name = default_name(settings(tmp_path), data)
    assert name.startswith(f"{data.name}-collapse-skip-8-16x2-")
    assert len(name.rsplit("-", 1)[1]) == 8
    assert default_name(settings(tmp_path, "training.seed=1"), data) != name
    assert default_name(settings(tmp_path), another(data)) != name
    deep = settings(tmp_path, f"model.widths={[8, 16] * 60}", "model.first_factorized_block=0")
    assert len(default_name(deep, data)) <= 200, "a folder can have the name"


def test_what_does_not_change_the_result_does_not_change_the_identity(data: Manifest, tmp_path: Path) -> None:
    first = settings(tmp_path)
    moved = settings(
        tmp_path / "elsewhere",
        "data.path=other",
        "data.decode_threads=3",
        "data.stage=/scratch",
        "cluster.address=10.0.0.1:6379",
        "cluster.cpus_per_worker=4",
        "cluster.gpu=true",
        "cluster.max_failures=0",
        "cluster.workers=1",
        "checkpoint.every_steps=7",
        "tracking.uri=http://somewhere",
        "tracking.experiment=another",
    )
    assert default_name(moved, data) == default_name(first, data)
    assert set(flatten(first)) >= EXECUTION_ONLY, "each of them is a setting"


def test_these_settings_and_no_others_may_change_when_a_run_is_resumed() -> None:
    assert {
        "run.name",
        "run.storage",
        "data.path",
        "data.decode_threads",
        "data.digest",
        "data.stage",
        "checkpoint.every_minutes",
        "checkpoint.every_steps",
        "checkpoint.max_save_failures",
        "checkpoint.grace_seconds",
        "checkpoint.keep",
        "checkpoint.keep_best",
        "checkpoint.upload",
        "cluster.address",
        "cluster.cpus_per_worker",
        "cluster.gpu",
        "cluster.max_failures",
        "cluster.min_workers",
        "cluster.network_interface",
        "cluster.numa",
        "cluster.resize_seconds",
        "cluster.wait_minutes",
        "cluster.workers",
        "start.checkpoint",
        "tracking.every_steps",
        "tracking.experiment",
        "tracking.pictures",
        "tracking.system_seconds",
        "tracking.tensorboard",
        "tracking.uri",
        "training.activation_checkpointing",
    } == EXECUTION_ONLY


def test_a_run_keeps_its_identity_when_it_is_opened_again(data: Manifest, tmp_path: Path) -> None:
    with claim(settings(tmp_path), data) as first:
        first.begin()
    with claim(settings(tmp_path, "cluster.max_failures=7"), data) as second:
        assert second.identity == first.identity
        assert second.path == first.path


@pytest.mark.parametrize("damage", [None, b"", b"\0" * 40])
def test_files_that_are_lost_are_restored_from_a_checkpoint_and_named(
    data: Manifest, tmp_path: Path, damage: bytes | None
) -> None:
    with claim(settings(tmp_path), data) as run:
        assert run.begin() == [], "a new run has lost nothing"
        for epochs in (1, 2):
            checkpoint = run.checkpoints / f"epoch-{epochs:05d}"
            checkpoint.mkdir(parents=True)
            shutil.copy(run.path / paths.IDENTITY, checkpoint / paths.IDENTITY_COPY)
            history.write(checkpoint, [EpochRecord(epoch, 1.5, {"train/loss": 2.0}) for epoch in range(1, epochs + 1)])
        history.write(run.path, run.history())
    lost = [run.path / paths.IDENTITY, run.path / paths.HISTORY]
    whole = [file.read_bytes() for file in lost]
    for file in lost:
        file.unlink() if damage is None else file.write_bytes(damage)
    how = "is missing" if damage is None else "is damaged"
    with claim(settings(tmp_path), data) as again:
        said = again.begin()
        assert again.begin() == [], "once"
    assert said == [f"{file.name} {how}: restored from checkpoint epoch-00002" for file in lost]
    assert [file.read_bytes() for file in lost] == whole
    assert again.identity == run.identity


def test_changed_settings_are_refused_with_the_difference(data: Manifest, tmp_path: Path) -> None:
    with claim(settings(tmp_path, "run.name=mine"), data) as run:
        run.begin()
    changed = settings(tmp_path, "run.name=mine", "optimizer.learning_rate=0.5", "training.epochs=2")
    with (
        pytest.raises(UserError, match=r"optimizer.learning_rate: 0.1 → 0.5; training.epochs: 30 → 2\).*run.name"),
        claim(changed, data),
    ):
        pass


def test_another_data_set_is_refused(data: Manifest, tmp_path: Path) -> None:
    with claim(settings(tmp_path, "run.name=mine"), data) as run:
        run.begin()
    other = another(data)
    with (
        pytest.raises(UserError, match=r"data set: [0-9a-f]{12} → "),
        claim(settings(tmp_path, "run.name=mine"), other),
    ):
        pass


def test_a_run_that_did_not_begin_leaves_nothing_and_fixes_no_setting(data: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="refused"), claim(settings(tmp_path, "run.name=mine"), data):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    with claim(settings(tmp_path, "run.name=mine", "training.epochs=2"), data) as run:
        run.begin()
    assert (tmp_path / "mine" / "run.yaml").exists()


def test_a_process_killed_while_it_wrote_the_identity_blocks_nothing(data: Manifest, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".run.yaml.0123456789abcdef.partial").write_text("id: 1f")
    with pytest.raises(UserError, match="refused"), claim(settings(tmp_path, "run.name=mine"), data):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".run.yaml.0123456789abcdef.partial").write_text("id: 1f")
    with claim(settings(tmp_path, "run.name=mine"), data) as run:
        run.begin()
    assert not list((tmp_path / "mine").glob(".*.partial"))


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(data: Manifest, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis.tex"), claim(settings(tmp_path, "run.name=mine"), data):
        pass
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


HOLD = """
import sys, time
from pathlib import Path
from data_prep.format.manifest import load_manifest
from pipeline.config.schema import DataSettings, RunSettings, Settings
from pipeline.runs.run_folder import claim
settings = Settings(data=DataSettings(path="x"), run=RunSettings(name="mine", storage=sys.argv[1]))
with claim(settings, load_manifest(Path(sys.argv[2]))):
    print("claimed", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(
    data: Manifest, textures: Path, tmp_path: Path
) -> None:
    mine = resolve(Settings, {"data": {"path": "x"}, "run": {"name": "mine", "storage": str(tmp_path)}}, "test")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), str(textures)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(UserError, match=f"is being trained by process {holder.pid} on "), claim(mine, data):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with claim(mine, data):
        pass


@pytest.mark.parametrize("damage", ["empty", "half", "zeros", "missing"])
def test_an_identity_that_is_lost_is_that_of_the_newest_checkpoint(data: Manifest, tmp_path: Path, damage: str) -> None:
    with claim(settings(tmp_path), data) as first:
        first.begin()
    file = first.path / paths.IDENTITY
    checkpoint = first.path / paths.CHECKPOINTS / "epoch-00001"
    checkpoint.mkdir(parents=True)
    (checkpoint / paths.IDENTITY_COPY).write_bytes(whole := file.read_bytes())
    damaged = {"empty": b"", "half": whole[: len(whole) // 2], "zeros": b"\0" * len(whole)}
    file.unlink() if damage == "missing" else file.write_bytes(damaged[damage])
    with claim(settings(tmp_path), data) as again:
        again.begin()
        assert again.identity == first.identity
    assert file.read_bytes() == whole
    if damage != "missing":
        (checkpoint / paths.IDENTITY_COPY).unlink()
        file.write_bytes(damaged[damage])
        refused = pytest.raises(UserError, match=r"run\.yaml cannot be read .*: choose another run\.name")
        with refused, claim(settings(tmp_path), data):
            pass


def test_a_full_disk_is_named_before_a_run_begins(data: Manifest, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        run = settings(disk, "run.name=mine")
        (disk / "mine").mkdir()
        (disk / "mine" / paths.LOCK).touch()
        filler = fill(disk)
        with pytest.raises(UserError, match=rf"^no space is left on the disk of {disk}/mine: "), claim(run, data):
            pass
        filler.unlink()
        with (
            pytest.raises(UserError, match=rf"^no space is left on the disk of {disk}/mine: "),
            claim(run, data) as folder,
        ):
            fill(disk)
            folder.begin()
