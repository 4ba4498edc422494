"""Trials of one worker, which train in processes that Ray Tune reuses: one search through all that can happen to them.

The first trial is killed in its second epoch. The search continues with the others in one new process: a small network,
one that is stopped early, one whose loss is not finite. Then it tries the killed one again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from data_prep.format.manifest import load_manifest
from pipeline.config import settings_io
from pipeline.launch import launcher
from pipeline.runs import history
from pipeline.runs.run_folder import owner
from tests.helpers.gate import Gate
from tests.helpers.runs import assert_same_bits

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLED, SMALL, BAD, FAILING = "8-16", "4-8", "2_learning_rate-1e-06", "2_learning_rate-1e30"
EPOCHS, STEPS = 3, 12


@dataclass
class Searched:
    """A search that has ended."""

    folder: Path
    status: int
    output: str
    processes: set[int]
    """Those of its cluster that were seen while it ran."""

    def records(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "trials.json").read_text())
        return content


def write_search(file: Path, data: Path, **search: Any) -> Path:
    content = {
        "train": {
            "data": {"path": str(data), "random_crop": False, "flip": False, "center_crop": 1.0, "holdout": 0.2},
            "run": {"storage": str(file.parent / "runs")},
            "model": {"first_factorized_block": 3, "classifier": "pooled"},
            "optimizer": {"learning_rate": 0.1},
            "training": {"epochs": EPOCHS, "batch_size": 16, "callbacks": ["gate"]},
            "cluster": {"workers": 1},
            "tracking": {"pictures": False},
        },
        "search": {"name": "tiny", "max_concurrent": 1, "grace_epochs": 1, **search},
    }
    file.write_text(yaml.safe_dump(content))
    return file


def start(config: Path, gate: Gate, *arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli.main", "tune", str(config), *arguments],
        env=environment | gate.variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def searched(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    storage = tmp_path_factory.mktemp("search")
    gate = Gate(storage / "gate")
    bad = [{"widths": [2], "optimizer.learning_rate": rate} for rate in ("1e-06", "1e30")]
    config = write_search(
        storage / "search.yaml", textures, space={"depth": [2], "width": [8, 4]}, candidates=bad, scheduler="asha"
    )
    folder = storage / "runs" / "tiny"
    gate.close(STEPS + 4)  # in the second epoch
    search = start(config, gate)
    trials = folder / "trials.json"
    wait_for(lambda: trials.exists() and json.loads(trials.read_text())[KILLED]["errors"], search)
    processes = {process.pid for process in psutil.Process(search.pid).children(recursive=True)}
    os.kill(int(owner(folder / KILLED).split()[1]), signal.SIGKILL)
    gate.open()
    output, _ = search.communicate(timeout=300)
    return Searched(folder, search.returncode, output, processes)


def test_a_killed_trial_is_tried_again_after_the_others_and_ends_with_the_same_bits(
    searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert searched.status == 0, searched.output
    assert f"{KILLED}: its process was killed: tried again when the others have ended" in searched.output
    assert f"{KILLED}: resumed after epoch 1" in searched.output
    record = searched.records()[KILLED]
    assert (record["status"], record["losses"], len(record["errors"])) == ("completed", 1, EPOCHS)
    settings = settings_io.load(searched.folder / KILLED / "checkpoints" / f"epoch-{EPOCHS:05d}" / "settings.yaml")
    overrides = {
        "cluster": {"workers": 0, "cpus_per_worker": 1},
        "run": {"name": "alone", "storage": str(tmp_path)},
        "tracking": {"uri": None},
    }
    for name, value in Gate(tmp_path / "open").variables().items():
        monkeypatch.setenv(name, value)
    changed = {name: getattr(settings, name).model_copy(update=values) for name, values in overrides.items()}
    alone = launcher.train(settings.model_copy(update=changed), progress=False)
    assert_same_bits(searched.folder / KILLED, alone.folder)


def test_one_process_serves_one_trial_after_another(searched: Searched) -> None:
    owners = {name: owner(searched.folder / name) for name in (SMALL, BAD, FAILING)}
    assert len(set(owners.values())) == 1, owners
    assert owner(searched.folder / KILLED) not in owners.values()


def test_trials_complete_are_stopped_or_fail_with_a_reason(searched: Searched) -> None:
    records = searched.records()
    assert {name: records[name]["status"] for name in (SMALL, BAD, FAILING)} == {
        SMALL: "completed",
        BAD: "stopped early",
        FAILING: "failed",
    }
    assert len(records[BAD]["errors"]) == 1
    assert "loss became" in records[FAILING]["reason"]
    assert "Traceback" not in searched.output


def test_the_runs_of_trials_are_tracked_as_they_ended(searched: Searched) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{searched.folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("phasecollapse")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "tiny": "FINISHED",
        KILLED: "FINISHED",
        SMALL: "FINISHED",
        BAD: "FINISHED",
        FAILING: "FAILED",
    }
    assert runs[BAD].data.tags["phasecollapse.outcome"] == "stopped early at epoch 1"
    assert not runs[BAD].outputs or not runs[BAD].outputs.model_outputs
    assert len(client.get_metric_history(runs[KILLED].info.run_id, "holdout/top1")) == EPOCHS


def test_finalists_train_on_all_images_with_several_seeds_and_are_measured_on_the_validation_images(
    searched: Searched, textures: Path, tmp_path: Path
) -> None:
    trials = searched.records()
    again = ["search.finalists=1", "search.final_seeds=2", "search.final_epochs=1"]
    for state in ("finished", "had already finished"):
        search = start(searched.folder.parent.parent / "search.yaml", Gate(tmp_path / "open"), *again)
        output, _ = search.communicate(timeout=300)
        assert search.returncode == 0 and f"search tiny {state}" in " ".join(output.split()), output
        assert "tracking store" not in output, "it has the new results"
    assert searched.records() == trials
    best = min((SMALL, KILLED), key=lambda name: trials[name]["errors"][str(EPOCHS)])
    finals = json.loads((searched.folder / "finals.json").read_text())
    assert list(finals) == [f"final_{best}_epochs-1_seed-{seed}" for seed in (0, 1)]
    everything = load_manifest(textures).splits["train"].samples
    errors = []
    for name, record in finals.items():
        [epoch] = history.read(searched.folder / name)
        errors.append(1 - epoch.metrics["validation/top1"])
        assert record["status"] == "completed" and record["errors"]["1"] == pytest.approx(errors[-1])
        assert not any(metric.startswith("holdout/") for metric in epoch.metrics)
        assert epoch.step == everything // 16
    assert f"finalist {best}: error {sum(errors) / 2:.4f} on " in output
    assert "mean of 2 seeds" in (searched.folder / "findings.txt").read_text()


def test_no_process_stays_behind(searched: Searched) -> None:
    assert len(searched.processes) > 2
    assert [pid for pid in searched.processes if psutil.pid_exists(pid)] == []


def test_a_search_stops_where_the_data_set_is_gone_and_goes_on_when_it_is_back(textures: Path, tmp_path: Path) -> None:
    gate, data = Gate(tmp_path / "gate"), tmp_path / "data"
    shutil.copytree(textures, data)
    config = write_search(tmp_path / "search.yaml", data, space={"depth": [1], "width": [2, 3, 4]}, scheduler="none")
    trials = tmp_path / "runs" / "tiny" / "trials.json"
    gate.close(STEPS + 4)
    search = start(config, gate)
    wait_for(lambda: trials.exists() and json.loads(trials.read_text())["2"]["errors"], search)
    data.rename(tmp_path / "away")
    gate.open()
    output, _ = search.communicate(timeout=300)
    assert search.returncode == 2, output
    assert re.search(
        rf"error: data set folder {data} .*: correct this, and the same command resumes", output.splitlines()[-1]
    ), output
    assert [one["status"] for one in json.loads(trials.read_text()).values()] == ["completed", "failed", "pending"]
    (tmp_path / "away").rename(data)
    search = start(config, gate, "--retry-failed")
    output, _ = search.communicate(timeout=300)
    assert search.returncode == 0, output
    assert [one["status"] for one in json.loads(trials.read_text()).values()] == ["completed"] * 3


def wait_for(condition: Callable[[], Any], search: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert search.poll() is None and time.monotonic() < deadline, search.communicate(timeout=10)[0]
        time.sleep(0.1)
