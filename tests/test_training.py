"""Claims about whole runs, with real images and a real store: in this process, and on Ray with workers that die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.utils import counters

from data_prep.errors import UserError
from pipeline import checkpoint, commands, config, launch, models, tracking, worker
from pipeline.settings import Settings

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
        "cluster": {"workers": 0},
    }
    return lambda *assignments: config.resolve(Settings, config.override(content, assignments), "test")


def final_weights(folder: Path) -> dict[str, Tensor]:
    return load_file(max((folder / "checkpoints").glob("epoch-*")) / checkpoint.MODEL)


def assert_same_bits(one: Path, other: Path) -> None:
    left, right = final_weights(one), final_weights(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


class Dies(worker.LocalSession):
    """A worker that is interrupted while it writes the second checkpoint."""

    def commit(self, epoch: int, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        def die(folder: Path) -> None:
            save(folder)
            raise KeyboardInterrupt

        super().commit(epoch, metrics, die if epoch == 2 else save)


def tracked(storage: Path, outcome_or_id: str) -> Any:
    return MlflowClient(tracking_uri=tracking.default_store(storage).uri).get_run(outcome_or_id)


def test_an_interrupted_run_goes_on_to_the_same_bits_in_the_same_tracked_run(
    settings: Callable[..., Settings], storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = launch.train(settings("run.name=whole"), progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "LocalSession", Dies)
        with pytest.raises(KeyboardInterrupt):
            launch.train(settings(), progress=False)
    run_id = MlflowClient(tracking.default_store(storage).uri).search_runs(["1"])[0].info.run_id
    assert tracked(storage, run_id).info.status == "KILLED"
    resumed = launch.train(settings("data.decode_threads=2", f"data.stage={storage / 'local'}"), progress=False)
    assert resumed.run_id == run_id
    assert resumed.epochs == EPOCHS
    assert not resumed.already_finished
    assert_same_bits(whole.folder, resumed.folder)
    speed = "train/images_per_second"
    assert {**whole.metrics, speed: 0} == {**resumed.metrics, speed: 0}
    assert [path.name for path in sorted((resumed.folder / "checkpoints").iterdir())] == ["epoch-00002", "epoch-00003"]


def test_the_tracked_run_holds_all_that_the_run_was(settings: Callable[..., Settings], storage: Path) -> None:
    outcome = launch.train(settings(), tags={"color": "blue"}, progress=False)
    run = tracked(storage, outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.widths"] == "[6]"
    assert run.data.metrics == pytest.approx(outcome.metrics)
    assert run.data.metrics["train/images_per_second"] > 0
    expected = {"color", "version.torch", "hardware.cpu", "hardware.memory_gib", "mlflow.source.git.commit"}
    assert expected <= run.data.tags.keys()
    client = MlflowClient(tracking.default_store(storage).uri)
    history = client.get_metric_history(outcome.run_id, "validation/top1")
    assert [metric.step for metric in history] == [1, 2, 3]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert config.load(artifacts / "settings.yaml") == settings()
    loaded = models.load(artifacts / "model")
    assert loaded.settings == settings()
    assert len(loaded.classes) == 10
    name, value = next(loaded.network.named_parameters())
    assert torch.equal(value, final_weights(outcome.folder)[name])


def test_a_finished_run_says_so_and_changes_nothing(
    settings: Callable[..., Settings], storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = launch.train(settings("training.epochs=1"))
    starts, epoch = capsys.readouterr().out.splitlines()
    assert starts == f"run {first.folder.name} starts, epochs: 1"
    assert re.match(r"epoch 1/1  loss \d+\.\d+  validation: top-1 \d+", epoch)
    ended = tracked(storage, first.run_id).info.end_time
    again = launch.train(settings("training.epochs=1"))
    assert again.already_finished
    assert again.metrics == first.metrics
    assert capsys.readouterr().out == ""
    assert "had already finished: 1 epochs" in commands.summary(again, "validation")
    assert tracked(storage, first.run_id).info.end_time == ended


def test_seed_and_settings_alone_decide_the_result(settings: Callable[..., Settings]) -> None:
    runs = [
        launch.train(settings("training.epochs=1", f"run.name={name}", f"training.seed={seed}"), progress=False)
        for name, seed in (("seed-0", 0), ("seed-0-again", 0), ("seed-1", 1))
    ]
    assert_same_bits(runs[0].folder, runs[1].folder)
    assert runs[0].metrics["train/loss"] != runs[2].metrics["train/loss"]


def test_a_compiled_run_learns_what_another_does(settings: Callable[..., Settings]) -> None:
    runs, graphs = [], []
    for on in ("false", "true"):
        counters.clear()
        chosen = settings("training.epochs=1", f"run.name=compile-{on}", f"training.compile={on}")
        runs.append(launch.train(chosen, progress=False))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == 0 < graphs[1]
    losses = [run.metrics["train/loss"] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    weights = [final_weights(run.folder) for run in runs]
    assert weights[0].keys() == weights[1].keys()


def test_accuracy_can_be_measured_on_held_out_training_images(settings: Callable[..., Settings]) -> None:
    outcome = launch.train(settings("training.epochs=1", "data.evaluate_on=holdout"), progress=False)
    assert {"holdout/loss", "holdout/top1", "holdout/top5"} <= outcome.metrics.keys()
    assert not any(name.startswith("validation/") for name in outcome.metrics)


def test_a_run_starts_again_from_the_settings_in_a_checkpoint_alone(settings: Callable[..., Settings]) -> None:
    first = launch.train(settings("training.epochs=1"), progress=False)
    saved = first.folder / "checkpoints" / "epoch-00001" / checkpoint.SETTINGS
    second = launch.train(config.load(saved, ["run.name=from-a-checkpoint"]), progress=False)
    assert_same_bits(first.folder, second.folder)


def test_a_diverging_run_fails_with_a_sentence_and_is_tracked_as_failed(
    settings: Callable[..., Settings], storage: Path
) -> None:
    with pytest.raises(UserError, match=r"the loss became (nan|inf) in epoch 1, step \d+ .*learning_rate"):
        launch.train(settings("optimizer.learning_rate=1.0e+38"), progress=False)
    newest = MlflowClient(tracking.default_store(storage).uri).search_runs(["1"])[0]
    assert newest.info.status == "FAILED"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("data.classes=7", r"data\.classes is 7, but the data set in .* has 10 classes"),
        ("data.path=nowhere", r"data set folder .*nowhere does not exist.*prepare"),
        ("data.image_size=2", r"block"),
        ("training.epochs=5", r"training\.epochs: 3 → 5"),
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
        launch.train(settings(), progress=False)
    before = sorted(path.name for path in storage.iterdir())
    with pytest.raises(UserError, match=message):
        launch.train(settings(assignment), progress=False)
    assert sorted(path.name for path in storage.iterdir()) == before, "nothing is left behind"


# On Ray


class Command:
    """``phasecollapse train`` as a user starts it, in a process of its own."""

    def __init__(self, file: Path, *overrides: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "train", str(file), *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )

    def end(self) -> tuple[int, str, str]:
        """Waits: exit status, standard output, standard error."""
        output, complaint = self.process.communicate(timeout=300)
        return self.process.returncode, output, complaint

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.family() if "RayTrainWorker" in " ".join(child.cmdline())]

    def kill(self) -> None:
        """SIGKILL for the command alone; its cluster has to notice."""
        # Ray's agents compute nothing, and look for their cluster for a minute.
        family = [child for child in self.family() if not child.cmdline()[0].endswith("Agent")]
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert alive == []


@pytest.fixture
def on_ray(textures: Path, tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands that train with two workers; ends what is left of them."""
    file = tmp_path / "run.yaml"
    content = {
        "data": {"path": str(textures), "image_size": 32, "flip": False},
        "run": {"storage": str(tmp_path / "runs")},
        "model": {"widths": [8, 8]},
        "optimizer": {"learning_rate": 0.01},
        "training": {"epochs": 12, "batch_size": 40},
        "cluster": {"workers": 2},
    }
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    started: list[Command] = []

    def start(*overrides: str) -> Command:
        started.append(Command(file, *overrides))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            command.kill()


def wait_for_epoch(run: Path, epoch: int, command: Command) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and command.process.poll() is None:
        if (run / "history.json").exists() and len(json.loads((run / "history.json").read_text())) >= epoch:
            return
        time.sleep(0.05)
    pytest.fail(f"epoch {epoch} of {run.name} did not come: {command.process.poll()}")


def test_a_run_whose_worker_and_command_are_killed_ends_with_the_bits_of_one_that_was_left_alone(
    on_ray: Callable[..., Command], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    status, output, complaint = on_ray("run.name=alone").end()
    assert (status, complaint) == (0, "")
    assert "12 epochs, validation top-1" in output

    command = on_ray("run.name=hurt")
    wait_for_epoch(runs / "hurt", 1, command)
    command.workers()[0].send_signal(signal.SIGKILL)
    done = len(json.loads((runs / "hurt" / "history.json").read_text()))
    assert done < 11, "the worker died too late to show anything"
    wait_for_epoch(runs / "hurt", done + 1, command)
    command.kill()

    status, output, complaint = on_ray("run.name=hurt").end()
    assert (status, complaint) == (0, "")
    assert_same_bits(runs / "alone", runs / "hurt")

    client = MlflowClient(tracking.default_store(runs).uri)
    (hurt,) = client.search_runs(["1"], "attributes.run_name = 'hurt'")
    assert hurt.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(hurt.info.run_id, "train/loss")]
    assert steps == list(range(1, 13)), "no epoch twice, none missing"

    file = tmp_path / "run.yaml"
    assert launch.train(config.load(file, ["run.name=hurt"])).already_finished
    with pytest.raises(UserError, match=r"run \S+/hurt was started with other settings \(training\.seed: 0 → 1\)"):
        launch.train(config.load(file, ["run.name=hurt", "training.seed=1"]))


def test_more_workers_than_the_cluster_has_are_refused(on_ray: Callable[..., Command], tmp_path: Path) -> None:
    status, output, complaint = on_ray("cluster.workers=100", "training.batch_size=200").end()
    assert (status, output) == (2, "")
    assert re.fullmatch(r"error: cluster\.workers: 100 workers .* do not fit: the cluster has \d+ CPU.*\n", complaint)
    assert list((tmp_path / "runs").iterdir()) == [], "no folder, no tracked run"


def test_a_second_start_is_refused_and_ctrl_c_ends_run_and_cluster(
    on_ray: Callable[..., Command], tmp_path: Path
) -> None:
    command = on_ray("run.name=interrupted", "training.epochs=500")
    wait_for_epoch(tmp_path / "runs" / "interrupted", 1, command)
    family = command.family()
    second = on_ray("run.name=interrupted", "training.epochs=500").end()
    assert second[:2] == (2, "")
    assert re.fullmatch(
        rf"error: run {tmp_path}/runs/interrupted is being trained by process {command.process.pid} on \S+: "
        r"wait for it, or choose another run\.name\n",
        second[2],
    )
    os.killpg(command.process.pid, signal.SIGINT)  # as a terminal does
    status, _, complaint = command.end()
    assert (status, complaint) == (130, "\ninterrupted: the same command continues\n")
    assert psutil.wait_procs(family, timeout=60)[1] == []
    (run,) = MlflowClient(tracking.default_store(tmp_path / "runs").uri).search_runs(["1"])
    assert run.info.status == "KILLED"
