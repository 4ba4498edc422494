"""Claims about a run that is given more epochs, and about what a dry run refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from data_prep.common.errors import UserError
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.launch import launcher
from pipeline.runs import paths, run_folder, trained_model
from pipeline.training.schedules import rate_factor
from tests.helpers.runs import write_configuration

STEPS = 12
"""Of an epoch of the textures, in batches of 20."""


def settings(folder: Path, textures: Path, *changes: str) -> Settings:
    more = ("cluster.workers=0", "run.name=one", "tracking.every_steps=1", *changes)
    return settings_io.load(write_configuration(folder, textures, *more))


@pytest.mark.slow
def test_a_finished_run_is_given_more_epochs(
    textures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = launcher.train(settings(tmp_path, textures, "training.epochs=1"), progress=False).folder
    network = json.loads((run / paths.NETWORK).read_text())
    assert network["parameters"] > 0 and network["multiply_adds"] > 0
    before = trained_model.read_weights(paths.stored_checkpoints(run)[-1])
    longer = settings(tmp_path, textures, "training.epochs=2", "optimizer.learning_rate=0.5")
    with pytest.raises(UserError, match=r"optimizer\.learning_rate: 0\.01 → 0\.5\): restore"):
        launcher.train(longer, progress=False)

    longer = settings(tmp_path, textures, "training.epochs=2")
    outcome = launcher.train(longer)
    assert "training.epochs: 1 → 2: learning rate and image size follow the schedule of 2" in capsys.readouterr().out
    assert outcome.epochs == 2 and not outcome.already_finished
    steps = run_folder.history.read_steps(run)
    assert [record.step for record in steps] == list(range(1, 2 * STEPS + 1))
    expected = [0.01 * rate_factor(step, longer.optimizer, 1 + step // STEPS, STEPS) for step in range(STEPS)]
    expected += [0.01 * rate_factor(step, longer.optimizer, 2, STEPS) for step in range(STEPS, 2 * STEPS)]
    assert [record.metrics["step/learning_rate"] for record in steps] == pytest.approx(expected)
    after = trained_model.read_weights(paths.stored_checkpoints(run)[-1])
    assert any(not value.equal(before[name]) for name, value in after.items())
    tracked = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db").get_run(outcome.run_id)
    assert (tracked.info.status, tracked.data.params["training.epochs"]) == ("FINISHED", "1")
    assert tracked.data.tags["training.epochs"] == "2"

    assert launcher.train(longer, progress=False).already_finished
    for fewer in (launcher.train, launcher.dry_run):
        with pytest.raises(UserError, match=r"training\.epochs: 2 → 1\): restore"):
            fewer(settings(tmp_path, textures, "training.epochs=1"))


def test_a_run_that_has_not_finished_keeps_its_epochs(textures: Path, tmp_path: Path) -> None:
    first = settings(tmp_path, textures, "training.epochs=1")
    data = launcher.load_manifest(textures)
    with run_folder.claim(first, data) as run:
        run.begin()
    with pytest.raises(UserError, match=r"training\.epochs: 1 → 2"):
        launcher.dry_run(settings(tmp_path, textures, "training.epochs=2"))


def test_a_dry_run_refuses_a_folder_that_the_run_would_refuse(textures: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"runs/one exists and is not a run \(it holds notes\.txt\)"):
        launcher.dry_run(settings(tmp_path, textures))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^run\.storage: \S+/file/one cannot be written"):
        launcher.dry_run(settings(tmp_path, textures, f"run.storage={tmp_path / 'file'}"))
