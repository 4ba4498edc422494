"""Claims about what a worker refuses before its first step: its node may hold something else than the command's."""

from __future__ import annotations

import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_prep.common.errors import UserError
from data_prep.common.parallel import ThreadExecutor
from data_prep.format.manifest import load_manifest
from data_prep.prepare.dataset_writer import prepare
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.textures import Textures
from pipeline.config import settings_io
from pipeline.runs import history, paths, run_folder, trained_model
from pipeline.runtime.coordination import StepAction
from pipeline.training import loop, trainer
from pipeline.training.callbacks import Callback, StepEnd
from pipeline.training.context import LocalContext, WorkerSpec
from tests.helpers.disks import hanging_disk
from tests.helpers.runs import write_configuration


@pytest.fixture
def job(textures: Path, tmp_path: Path) -> Iterator[WorkerSpec]:
    """A run that has begun."""
    settings = settings_io.load(
        write_configuration(tmp_path, textures, "cluster.workers=0", "training.epochs=1", "run.name=one"), []
    )
    with run_folder.claim(settings, load_manifest(textures), None) as run:
        run.begin()
        yield WorkerSpec(settings, run)


def test_a_node_that_does_not_see_the_runs_folder_is_named(job: WorkerSpec) -> None:
    hidden = job.folder.path.rename(job.folder.path.with_name("hidden"))
    with pytest.raises(UserError, match=rf"^run\.storage: node {platform.node()} does not see \S+/one: name a folder"):
        trainer.train_worker(job, LocalContext(job))
    hidden.rename(job.folder.path)


def test_a_node_with_another_data_set_is_named(job: WorkerSpec, textures: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    source = Textures(seed=1, train_per_class=24, validation_per_class=7)
    prepare(source, other, PrepareSpec.of(source), ThreadExecutor(1))
    mine, theirs = (load_manifest(folder).digest[:12] for folder in (other, textures))
    settings = job.settings.model_copy(update={"data": job.settings.data.model_copy(update={"path": str(other)})})
    changed = WorkerSpec(settings, job.folder)
    says = (
        rf"^data\.path: {other} on node {platform.node()} is another data set \({mine}\) than .* \({theirs}\): put the"
    )
    with pytest.raises(UserError, match=says):
        trainer.train_worker(changed, LocalContext(changed))


def test_the_trained_weights_are_stored_before_an_evaluation_that_fails(
    job: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluation_sums", lambda logits, labels: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train_worker(job, LocalContext(job))
    steps = len(range(0, 240, job.settings.training.batch_size))
    [stored] = paths.stored_checkpoints(job.folder.path)
    assert stored.name == f"epoch-00000-step-{steps:07d}"
    trained = trained_model.read_weights(stored)
    assert trainer.train_worker(job, LocalContext(job))
    [final] = paths.stored_checkpoints(job.folder.path)[-1:]
    assert final.name == "epoch-00001"
    assert all(torch.equal(value, trained[name]) for name, value in trained_model.read_weights(final).items())


def test_storage_that_does_not_answer_delays_no_step(textures: Path, tmp_path: Path) -> None:
    with hanging_disk(tmp_path / "disk", tmp_path / "image") as hangs:
        changes = ("training.epochs=1", "run.name=one", f"run.storage={tmp_path / 'disk'}", "tracking.every_steps=1")
        settings = settings_io.load(write_configuration(tmp_path, textures, "cluster.workers=0", *changes), [])
        steps: list[int] = []
        in_time: list[bool] = []
        rescue = threading.Timer(20, hangs, [False])  # where a step waits, nothing else would end the test

        class Hang(Callback):
            def on_step_end(self, event: StepEnd) -> StepAction:
                time.sleep(0.2)  # so that the position is written several times
                if event.number == 3:
                    hangs(True)
                    rescue.start()
                if event.number == 9:
                    in_time.append(rescue.is_alive())
                    rescue.cancel()
                    if in_time[0]:
                        hangs(False)
                steps.append(event.number)
                return StepAction.NOTHING

        with run_folder.claim(settings, load_manifest(textures), None) as run:
            run.begin()
            job = WorkerSpec(settings, run)
            training = trainer.Trainer(job, LocalContext(job))
            training.callbacks.append(Hang())
            assert training.fit()
        assert in_time == [True]
        assert [record.step for record in history.read_steps(run.path)] == steps == list(range(1, 13))


def test_a_run_that_is_not_interrupted_keeps_no_checkpoint_from_before_its_last_evaluation(job: WorkerSpec) -> None:
    assert trainer.train_worker(job, LocalContext(job))
    assert [stored.name for stored in paths.stored_checkpoints(job.folder.path)] == ["epoch-00001"]
