"""Claims about whole runs, with real images and a real store: in this process, and on Ray with workers that die."""

from __future__ import annotations

import os
import platform
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow import MlflowClient
from torch._dynamo.utils import counters

from data_prep.common.errors import UserError
from data_prep.format.manifest import load_manifest
from pipeline.cli import train
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.launch import launcher
from pipeline.runs import train_state, trained_model
from pipeline.tracking.mlflow_store import registry
from pipeline.tracking.mlflow_store.store import default_store
from tests.helpers.ray_cluster import title
from tests.helpers.runs import Command, assert_same_bits, final_weights, wait_for_epoch, write_configuration

pytestmark = pytest.mark.slow

EPOCHS = 3


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of this module share a folder, as MLflow's tables take seconds to make."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def settings(textures: Path, storage: Path, request: pytest.FixtureRequest) -> Callable[..., Settings]:
    """Makes settings of a small run in this process, named after the test."""
    content: dict[str, Any] = {
        "data": {"path": str(textures), "image_size": 16, "flip": False, "evaluate_on": "validation"},
        "run": {"storage": str(storage), "name": re.sub(r"\W+", "-", request.node.name)},
        "model": {"widths": [6]},
        "training": {"epochs": EPOCHS, "batch_size": 60},
        "tracking": {"pictures": False},
        "cluster": {"workers": 0},
    }
    return lambda *assignments: settings_io.resolve(Settings, settings_io.override(content, assignments), "test")


def tracked(storage: Path, outcome_or_id: str | None) -> Any:
    return MlflowClient(tracking_uri=default_store(storage).uri).get_run(outcome_or_id)


def test_an_interrupted_run_resumes_to_the_same_bits_in_the_same_tracked_run(
    settings: Callable[..., Settings], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(folder: Path, state: train_state.TrainState, *others: Any) -> None:
        save(folder, state, *others)
        if state.epochs_done == 2:
            raise KeyboardInterrupt

    whole = launcher.train(settings("run.name=whole", "training.activation_checkpointing=true"), progress=False)
    save = train_state.save
    with monkeypatch.context() as patch:
        patch.setattr(train_state, "save", die)
        with pytest.raises(KeyboardInterrupt):
            launcher.train(settings("tracking.every_steps=3"), progress=False)
    run_id = MlflowClient(default_store(storage).uri).search_runs(["1"])[0].info.run_id
    assert tracked(storage, run_id).info.status == "KILLED"
    resumed = launcher.train(
        settings("data.decode_threads=2", f"data.stage={storage / 'local'}", "tracking.every_steps=3"), progress=False
    )
    assert resumed.run_id == run_id
    assert resumed.epochs == EPOCHS
    assert not resumed.already_finished
    assert_same_bits(whole.folder, resumed.folder)
    assert "copies the data set to" in (resumed.folder / "events.log").read_text(encoding="utf-8")
    timed = dict.fromkeys(("train/images_per_second", "train/seconds", "train/waiting_for_data", "train/saving"), 0)
    assert whole.metrics | timed == resumed.metrics | timed
    points = MlflowClient(default_store(storage).uri).get_metric_history(run_id, "step/loss")
    assert sorted(point.step for point in points) == [3, 6, 9, 12], "a point for three of twelve steps, none twice"
    assert points[-1].value == pytest.approx(resumed.metrics["train/loss"], rel=0.2)
    kept = {path.name for path in (resumed.folder / "checkpoints").iterdir()}
    assert {"epoch-00002", "epoch-00003"} <= kept <= {"epoch-00001", "epoch-00002", "epoch-00003"}


def test_the_tracked_run_holds_all_that_the_run_was(
    settings: Callable[..., Settings], storage: Path, textures: Path
) -> None:
    chosen = settings("tracking.system_seconds=0.05")
    outcome = launcher.train(chosen, tags={"color": "blue"}, progress=False)
    run = tracked(storage, outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.widths"] == "[6]"
    assert {name: run.data.metrics[name] for name in outcome.metrics} == pytest.approx(outcome.metrics)
    assert run.data.metrics["train/images_per_second"] > 0
    expected = {"color", "version.torch", "hardware.cpu", "hardware.memory_gib", "mlflow.source.git.commit"}
    assert expected <= run.data.tags.keys()
    client = MlflowClient(default_store(storage).uri)
    history = client.get_metric_history(outcome.run_id, "validation/top1")
    assert [metric.step for metric in history] == [4, 8, 12], "training steps, as of all curves"
    assert run.data.metrics["best/validation/top1"] == max(metric.value for metric in history)
    assert run.data.metrics["network/parameters"] > 0
    assert 0 < run.data.metrics[f"system/{platform.node()}/system_memory_usage_percentage"] <= 100
    assert run.data.tags["mlflow.source.name"] == "phasecollapse"
    assert run.data.tags["command"] and "top-1" in run.data.tags["mlflow.note.content"]
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.digest == load_manifest(textures).digest[:36]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert settings_io.load(artifacts / "settings.yaml") == chosen
    with registry.checkpoint_of(f"runs:/{outcome.run_id}", storage) as checkpoint:
        loaded = trained_model.load(checkpoint)
    assert loaded.settings == chosen
    assert len(loaded.classes) == 10
    name, value = next(loaded.network.named_parameters())
    assert torch.equal(value, final_weights(outcome.folder)[name])


def test_a_finished_run_says_so_and_changes_nothing(
    settings: Callable[..., Settings], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = launcher.train(settings("training.epochs=1"))
    starts, epoch = capsys.readouterr().out.splitlines()
    assert starts == f"run {first.folder.name} starts, epochs: 1"
    assert re.match(r"epoch 1/1  loss \d+\.\d+  validation: top-1 \d+", epoch)
    ended = tracked(storage, first.run_id).info.end_time
    again = launcher.train(settings("training.epochs=1"))
    assert again.already_finished
    assert again.metrics == first.metrics
    assert capsys.readouterr().out == ""
    assert "had already finished: 1 epoch," in train.summary(again, "validation")
    assert tracked(storage, first.run_id).info.end_time == ended


def test_seed_and_settings_alone_decide_the_result(settings: Callable[..., Settings]) -> None:
    runs = [
        launcher.train(settings("training.epochs=1", f"run.name={name}", f"training.seed={seed}"), progress=False)
        for name, seed in (("seed-0", 0), ("seed-0-again", 0), ("seed-1", 1))
    ]
    assert_same_bits(runs[0].folder, runs[1].folder)
    assert runs[0].metrics["train/loss"] != runs[2].metrics["train/loss"]


def test_a_compiled_run_learns_what_another_does(settings: Callable[..., Settings]) -> None:
    runs, graphs = [], []
    for on in ("false", "true"):
        counters.clear()
        chosen = settings("training.epochs=1", f"run.name=compile-{on}", f"training.compile={on}")
        runs.append(launcher.train(chosen, progress=False))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == 0 < graphs[1]
    losses = [run.metrics["train/loss"] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    weights = [final_weights(run.folder) for run in runs]
    assert weights[0].keys() == weights[1].keys()


def test_accuracy_can_be_measured_on_held_out_training_images(settings: Callable[..., Settings]) -> None:
    outcome = launcher.train(settings("training.epochs=1", "data.evaluate_on=holdout"), progress=False)
    assert {"holdout/loss", "holdout/top1", "holdout/top5"} <= outcome.metrics.keys()
    assert not any(name.startswith("validation/") for name in outcome.metrics)


def test_a_run_starts_again_from_the_settings_in_a_checkpoint_alone(settings: Callable[..., Settings]) -> None:
    first = launcher.train(settings("training.epochs=1"), progress=False)
    saved = first.folder / "checkpoints" / "epoch-00001" / train_state.SETTINGS
    second = launcher.train(settings_io.load(saved, ["run.name=from-a-checkpoint"]), progress=False)
    assert_same_bits(first.folder, second.folder)


def test_a_diverging_run_fails_with_a_sentence_and_is_tracked_as_failed(
    settings: Callable[..., Settings], storage: Path
) -> None:
    with pytest.raises(UserError, match=r"the loss became (nan|inf) in epoch 1, step \d+ .*learning_rate"):
        launcher.train(settings("optimizer.learning_rate=1.0e+38"), progress=False)
    newest = MlflowClient(default_store(storage).uri).search_runs(["1"])[0]
    assert newest.info.status == "FAILED"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.classes=7", r"data\.classes is 7, but the data set in .* has 10 classes"),
        ("data.path=nowhere", r"data set folder .*nowhere does not exist.*prepare"),
        ("data.image_size=2", r"block"),
        ("training.epochs=2", r"training\.epochs: 3 → 2"),
        ("cluster.gpu=true", r"cluster\.gpu is true, but torch sees no GPU"),
        ("run.storage=/dev/null/x", r"run\.storage: /dev/null/x/.* cannot be written"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    settings: Callable[..., Settings], storage: Path, assignment: str, message: str
) -> None:
    if assignment == "cluster.gpu=true" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if assignment.startswith("training"):
        launcher.train(settings(), progress=False)
    before = sorted(path.name for path in storage.iterdir())
    with pytest.raises(UserError, match=message):
        launcher.train(settings(assignment), progress=False)
    assert sorted(path.name for path in storage.iterdir()) == before, "nothing is left behind"


# On Ray


@pytest.fixture
def on_ray(textures: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands that train with two workers; ends what is left of them."""
    file = write_configuration(tmp_path, textures, "data.image_size=32", "training.epochs=12", "cluster.workers=2")
    started: list[Command] = []

    def start(*overrides: str) -> Command:
        started.append(Command(file, *overrides))
        return started[-1]

    yield start
    for command in started:
        command.close()


def test_more_workers_than_the_cluster_has_are_refused(on_ray: Callable[..., Command], tmp_path: Path) -> None:
    status, output, complaint = on_ray("cluster.workers=100", "training.batch_size=200").end()
    assert (status, output) == (2, "starting 100 workers on Ray\n")
    assert re.fullmatch(
        r"error: cluster\.workers: 100 workers .* each: too many, as the cluster has \d+ CPU.*\n", complaint
    )
    assert list((tmp_path / "runs").iterdir()) == [], "no folder, no tracked run"


def test_a_second_start_is_refused_and_ctrl_c_ends_run_and_cluster(
    on_ray: Callable[..., Command], tmp_path: Path
) -> None:
    command = on_ray("run.name=interrupted", "training.epochs=500")
    wait_for_epoch(tmp_path / "runs" / "interrupted", 1, command)
    family = command.family()
    titles = " ".join(map(title, family))
    assert "ray::TrainController" in titles
    for idle in ("log_monitor", "DatasetManager", "PlacementGroupCleaner"):
        assert idle not in titles, "it would take CPU time from training"
    second = on_ray("run.name=interrupted", "training.epochs=500").end()
    assert second[:2] == (2, "")
    assert re.fullmatch(
        rf"error: run {tmp_path}/runs/interrupted is being trained by process {command.process.pid} on \S+: "
        r"wait for it, or choose another run\.name\n",
        second[2],
    )
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does
    status, _, complaint = command.end()
    assert (status, complaint) == (130, "\ninterrupted: rerun the same command to resume\n")
    assert psutil.wait_procs(family, timeout=180)[1] == []
    (run,) = MlflowClient(default_store(tmp_path / "runs").uri).search_runs(["1"])
    assert run.info.status == "KILLED"
