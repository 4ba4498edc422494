"""Claims about what a run says before it starts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import nn

from data_prep.common.errors import UserError
from data_prep.format.manifest import load_manifest
from pipeline import models
from pipeline.cli.train import train
from pipeline.config import settings_io
from pipeline.launch import launcher, run_plan
from pipeline.launch.run_plan import Plan, describe_speed, measure_speed, shortage
from pipeline.runs import paths
from pipeline.training.loop import Compute


@pytest.fixture
def file(textures: Path, tmp_path: Path) -> Path:
    content = {
        "data": {"path": str(textures), "image_size": 48, "flip": False, "evaluate_on": "holdout", "holdout": 0.2},
        "run": {"storage": str(tmp_path / "runs"), "name": "planned"},
        "model": {"widths": [24, 32], "classifier": "pooled"},
        "optimizer": {"ema_decay": 0.9},
        "training": {"epochs": 2, "batch_size": 50, "initial_image_size": 32, "micro_batch_size": 20},
        "cluster": {"workers": 0},
        "checkpoint": {"keep": 1, "keep_best": 1},
        "tracking": {"pictures": False},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_numbers_are_those_of_the_run(file: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    settings = settings_io.load(file, [])
    planned = launcher.dry_run(settings)
    assert torch.get_num_threads() == threads
    assert not (tmp_path / "runs").exists(), "nothing is written"
    run = launcher.train(settings, progress=False).folder
    stored = paths.stored_checkpoints(run)[-1]
    assert planned.training_images + planned.evaluation_images == 240
    assert (planned.images_per_worker, planned.micro_batch_size, planned.sizes) == (50, 20, [32, 48])
    assert planned.pixel_share == (32**2 + 48**2) / 2 / 48**2
    weights = sum(path.stat().st_size for path in stored.iterdir())
    assert planned.checkpoint_bytes == pytest.approx(weights, rel=0.2)
    state = torch.load(stored / "training.pt", weights_only=True)
    assert state["schedule"]["last_epoch"] == 2 * planned.steps_per_epoch


def test_workers_share_the_batch_and_add_up_their_speed(file: Path, textures: Path) -> None:
    changes = ("training.micro_batch_size=null",)
    settings = [settings_io.load(file, [f"cluster.workers={workers}", *changes]) for workers in (1, 4)]
    one, four = map(launcher.dry_run, settings)
    assert (one.images_per_worker, four.images_per_worker) == (50, 13)
    assert four.memory_bytes < one.memory_bytes
    assert measure_speed(settings[0], one).images_per_second > 0


@pytest.mark.parametrize(("threads", "at_once"), [(1, 2), (3, 1)])
def test_as_many_workers_are_timed_at_once_as_there_is_room_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, threads: int, at_once: int
) -> None:
    networks: list[nn.Module] = []
    build = models.build
    monkeypatch.setattr(
        models, "build", lambda *given, **options: networks.append(build(*given, **options)) or networks[-1]
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    settings = settings_io.load(file, ["cluster.workers=2", f"cluster.cpus_per_worker={threads}"])
    assert measure_speed(settings, launcher.dry_run(settings)).images_per_second > 0
    assert sum(next(network.parameters()).device.type == "cpu" for network in networks) == at_once


def test_the_command_prints_the_plan_and_starts_nothing(file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(train, [str(file), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("workers", "steps", "network", "memory", "checkpoints", "speed"),
    ]
    assert "32 → 48 pixels" in done.stdout and re.search(
        r"about [\d,]+ images/s of 48 pixels \(measured on this machine, 20 images a step\)", done.stdout
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml"]


@pytest.mark.slow
def test_a_profile_is_a_trace_of_a_few_steps(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(train, [str(file), "--profile", "training.epochs=3", "model.widths=[4, 4]"])
    assert done.exit_code == 0, done.output
    trace = json.loads((tmp_path / "runs" / "planned" / "trace.json").read_text())
    assert any("convolution" in event["name"] or "mm" in event["name"] for event in trace["traceEvents"])
    assert "profile of 4 steps" in done.stdout
    assert capfd.readouterr().err == "", "the profiler's library prints nothing of its own"


def test_another_data_set_than_expected_is_refused(file: Path, textures: Path) -> None:
    digest = load_manifest(textures).digest
    assert isinstance(launcher.dry_run(settings_io.load(file, [f"data.digest={digest[:12]}"])), Plan)
    with pytest.raises(UserError, match=rf"data\.digest is 0123456789ab, but the data set in .* has {digest}"):
        launcher.dry_run(settings_io.load(file, ["data.digest=0123456789ab"]))


def test_a_plan_for_gpus_is_printed_at_once_where_there_is_none(file: Path) -> None:
    changes = ["cluster.workers=64", "cluster.gpu=true", "training.batch_size=200"]
    done = CliRunner().invoke(train, [str(file), "--dry-run", *changes])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith(
        "speed        not measured: cluster.gpu is true, and torch sees no GPU"
    )
    assert "warning: cluster.workers: 64 workers with 1 CPU and a GPU each: too many, as this machine" in done.stderr


@pytest.mark.parametrize(("change", "warned"), [("workers=99", True), ("workers=0", False), ("address=auto", False)])
def test_workers_that_do_not_fit_on_this_machine_are_named(file: Path, change: str, warned: bool) -> None:
    settings = settings_io.load(file, ["training.batch_size=200", "cluster.workers=99", f"cluster.{change}"])
    assert bool(shortage(settings.cluster)) == warned


def test_a_network_too_large_for_a_cpu_is_timed_on_few_images(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_io.load(file)
    monkeypatch.setattr(run_plan, "CPU_FLOPS", 1.0)
    assert measure_speed(settings, launcher.dry_run(settings)).images_per_step == 2


def test_memory_that_is_too_small_for_the_timed_steps_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*arguments: object) -> None:
        raise MemoryError

    settings = settings_io.load(file, ["cluster.workers=2"])
    plan = launcher.dry_run(settings)
    monkeypatch.setattr(Compute, "logits", too_large)
    with pytest.raises(UserError, match=r"^memory is too small for a step \(MemoryError\): set"):
        describe_speed(settings, plan)
