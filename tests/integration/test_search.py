"""A whole search in a cluster that was up before: interrupted by Ctrl-C, then continued to its end.

One search serves all tests: it starts, is interrupted in its first trial, and the same command continues it. Its
candidates are a good network and one that learns nothing. Trials that fail: test_trials_in_process.py.
"""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.gate import Gate
from tests.helpers.ray_cluster import ExternalCluster, external_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

COMMAND = str(Path(sys.executable).with_name("phasecollapse"))
GOOD, BAD = "8-16-32", "2_learning_rate-1e-06"
EPOCHS, STEP_OF_THIRD_EPOCH = 4, 30


@dataclass
class Searched:
    """A search's folder, and what was seen after each of its two sessions."""

    folder: Path
    cluster: ExternalCluster
    config: Path
    interrupted: dict[str, Any]
    completed: dict[str, Any]


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Holds the first trial, so that it does not complete before the search is interrupted."""
    return Gate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="module")
def cluster(gate: Gate) -> Iterator[ExternalCluster]:
    variables = gate.variables()
    variables["PHASECOLLAPSE_EXTENSIONS"] += ",tests.helpers.without_ffcv"
    with external_cluster(variables=variables) as one:
        yield one


@pytest.fixture(scope="module")
def searched(
    cluster: ExternalCluster, gate: Gate, textures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Searched:
    storage = tmp_path_factory.mktemp("search")
    config = storage / "search.yaml"
    config.write_text(yaml.safe_dump(settings(textures, storage / "runs", cluster.address)))
    folder = storage / "runs" / "tiny"

    gate.close(STEP_OF_THIRD_EPOCH)
    with start(config, cluster) as search:
        wait_for(lambda: epochs_seen(folder).get(GOOD), search)
        search.send_signal(signal.SIGINT)
        interrupted = seen_after(search, cluster, folder)
    gate.open()
    with start(config, cluster) as search:
        completed = seen_after(search, cluster, folder)
    return Searched(folder, cluster, config, interrupted, completed)


def settings(data: Path, storage: Path, address: str) -> dict[str, Any]:
    return {
        "train": {
            "data": {"path": str(data), "random_crop": False, "flip": False, "center_crop": 1.0, "holdout": 0.25},
            "run": {"storage": str(storage)},
            "model": {"first_factorized_block": 3, "classifier": "pooled"},
            "optimizer": {"learning_rate": 0.1},
            "training": {"epochs": EPOCHS, "batch_size": 16, "callbacks": ["gate"]},
            "cluster": {"workers": 2, "address": address},
            "tracking": {"pictures": False},
        },
        "search": {
            "name": "tiny",
            "space": {"depth": [3], "width": [8]},
            "candidates": [
                {"widths": [2], "optimizer.learning_rate": "1e-06"},
            ],
            "grace_epochs": 1,
        },
    }


def start(config: Path, cluster: ExternalCluster, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, "tune", str(config), *overrides],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Any, search: subprocess.Popen[str], timeout_s: float = 600) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert search.poll() is None and time.monotonic() < deadline, search.communicate(timeout=10)[0]
        time.sleep(0.2)


def epochs_seen(folder: Path) -> dict[str, int]:
    """How many epochs of each trial the scheduler has seen."""
    file = folder / "trials.json"
    return {name: len(one["errors"]) for name, one in json.loads(file.read_text()).items()} if file.exists() else {}


def seen_after(search: subprocess.Popen[str], cluster: ExternalCluster, folder: Path) -> dict[str, Any]:
    output, _ = search.communicate(timeout=900)
    state = cluster.state()
    return {
        "output": output,
        "status": search.returncode,
        "state": state,
        "processes": cluster.working_processes(),
        "tracked": tracked_runs(folder),
        "epochs": epochs_seen(folder),
    }


def tracked_runs(folder: Path) -> dict[str, Any]:
    """The search's run and those of its trials, as MLflow shows them."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("phasecollapse")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def statuses(seen: dict[str, Any]) -> dict[str, str]:
    return {name: run.info.status for name, run in seen["tracked"].items()}


def table(searched: Searched) -> dict[str, dict[str, str]]:
    """The rows of the CSV file, by trial."""
    lines = (searched.folder / "table.csv").read_text().splitlines()
    return {row["trial"]: row for row in csv.DictReader(lines)}


@pytest.mark.parametrize("session", ["interrupted", "completed"])
def test_a_search_leaves_the_cluster_as_it_found_it(searched: Searched, session: str) -> None:
    seen = getattr(searched, session)
    assert seen["state"] == {"cpus": 2.0, "total": 2.0, "placement_groups": [], "actors": []}
    assert seen["processes"] == []
    assert "RUNNING" not in statuses(seen).values()


def test_ctrl_c_ends_a_search_with_status_130_and_its_runs_as_killed(searched: Searched) -> None:
    seen = searched.interrupted
    assert seen["status"] == 130
    assert "Traceback" not in seen["output"]
    assert statuses(seen) == {"tiny": "KILLED", GOOD: "KILLED"}


def test_the_same_command_continues_where_the_search_was_interrupted(searched: Searched) -> None:
    first, then = searched.interrupted, searched.completed
    assert then["status"] == 0, then["output"]
    assert 1 <= first["epochs"][GOOD] < EPOCHS
    assert f"{GOOD}: resumed after epoch {first['epochs'][GOOD]}" in then["output"]
    assert then["tracked"][GOOD].info.run_id == first["tracked"][GOOD].info.run_id


def test_a_search_needs_no_stock_ffcv(searched: Searched) -> None:
    versions = json.loads((searched.folder / GOOD / "environment.json").read_text(encoding="utf-8"))
    assert "version.ray" in versions and "version.ffcv" not in versions


def test_a_good_trial_completes_and_a_bad_one_is_stopped_early(searched: Searched) -> None:
    rows = table(searched)
    assert {name: row["status"] for name, row in rows.items()} == {
        GOOD: "completed",
        BAD: "stopped early",
    }
    assert (rows[GOOD]["frontier"], rows[BAD]["frontier"]) == ("1", "0")
    assert int(rows[BAD]["epochs"]) < EPOCHS == int(rows[GOOD]["epochs"])
    assert f"{BAD}: stopped early at epoch 1" in searched.completed["output"]
    assert searched.completed["tracked"][BAD].data.tags["phasecollapse.outcome"] == "stopped early at epoch 1"


def test_trials_are_child_runs_and_never_measured_on_the_validation_images(searched: Searched) -> None:
    runs = searched.completed["tracked"]
    for name in (GOOD, BAD):
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
        assert runs[name].data.params["data.evaluate_on"] == "holdout"
        assert runs[name].data.tags["command"] == runs["tiny"].data.tags["command"]
        assert not any(metric.startswith("validation/") for metric in runs[name].data.metrics)
    assert "holdout/top1" in runs[GOOD].data.metrics
    error = json.loads((searched.folder / "trials.json").read_text())[GOOD]["errors"][str(EPOCHS)]
    assert error == pytest.approx(1 - runs[GOOD].data.metrics["holdout/top1"])


def test_table_and_picture_are_artifacts_of_the_search(searched: Searched) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{searched.folder.parent / 'mlflow.db'}")
    stored = {file.path for file in client.list_artifacts(searched.completed["tracked"]["tiny"].info.run_id)}
    assert {"table.md", "table.csv", "frontier.png", "settings.yaml"} <= stored


def test_a_finished_search_says_so_and_shows_its_table(searched: Searched) -> None:
    with start(searched.config, searched.cluster) as search:
        output, _ = search.communicate(timeout=300)
    assert search.returncode == 0
    assert "search tiny had already finished" in output
    assert GOOD in output


def test_changed_settings_are_refused_with_the_difference(searched: Searched) -> None:
    with start(searched.config, searched.cluster, "train.optimizer.momentum=0.5") as search:
        output, _ = search.communicate(timeout=300)
    assert search.returncode == 2
    assert "train.optimizer.momentum: 0.9 → 0.5" in output


def test_more_workers_than_the_cluster_has_are_refused_before_a_trial_starts(searched: Searched) -> None:
    overrides = ("search.name=large", "train.cluster.workers=3")
    with start(searched.config, searched.cluster, *overrides) as search:
        output, _ = search.communicate(timeout=300)
    assert search.returncode == 2
    assert "cluster.workers: 3 workers" in output.splitlines()[-1]
    assert "started" not in output
    assert not (searched.folder.parent / "large").exists()
