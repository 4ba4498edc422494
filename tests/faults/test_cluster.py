"""Claims about runs on a cluster whose workers, nodes, controller and driver are taken away, one after the other.

The cluster has two nodes with two CPUs each, outside the program that is tested, and serves all tests.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from data_prep.common.errors import UserError
from pipeline.config import settings_io
from pipeline.launch import launcher
from pipeline.runs import paths
from pipeline.runs.paths import RunPosition
from pipeline.tracking.mlflow_store.store import default_store
from tests.helpers.gate import OPTION, Gate
from tests.helpers.ranks import train_in_ranks
from tests.helpers.ray_cluster import RAY, ExternalCluster, external_cluster, title
from tests.helpers.runs import (
    Command,
    assert_same_bits,
    epochs_done,
    wait_for,
    wait_for_epoch,
    wait_for_point,
    write_configuration,
)

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 6, 12
SOON = 5
"""Steps, behind a checkpoint that is waited for, after which a run is held until it is hurt."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """Holds runs that name it, so that no death comes too late."""
    return Gate(tmp_path_factory.mktemp("gate") / "gate")


@pytest.fixture(scope="module")
def cluster(gate: Gate) -> Iterator[ExternalCluster]:
    with external_cluster(nodes=2, cpus=2, variables=gate.variables()) as one:
        yield one


@pytest.fixture(scope="module")
def file(cluster: ExternalCluster, textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run of four workers."""
    changes = (f"training.epochs={EPOCHS}", "cluster.workers=4", f"cluster.address={cluster.address}")
    return write_configuration(tmp_path_factory.mktemp("faults"), textures, *changes)


@pytest.fixture
def start(file: Path, cluster: ExternalCluster) -> Iterator[Callable[..., Command]]:
    """Starts commands in the cluster; ends what is left of them."""
    started: list[Command] = []

    def start(*overrides: str, **variables: str) -> Command:
        started.append(Command(file, *overrides, environment={**cluster.environment, **variables}))
        return started[-1]

    yield start
    for command in started:
        command.close()


def workers(cluster: ExternalCluster) -> list[psutil.Process]:
    return [one for one in cluster.processes() if "RayTrainWorker" in title(one)]


def events(run: Path) -> str:
    file = run / paths.EVENTS
    return file.read_text() if file.exists() else ""


def records(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "history.json").read_text())
    return found


NODE = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print(*[node["NodeID"] for node in ray.nodes() if node["Alive"] and "node:__internal_head__" not in node["Resources"]])
"""


def announce_preemption(cluster: ExternalCluster, seconds: int) -> None:
    """Announces to Ray, as a provider's agent does, that the node beside the head will be taken away."""
    look = [sys.executable, "-c", NODE, cluster.address]
    found = subprocess.run(look, env=cluster.environment, capture_output=True, text=True, check=True)
    (node,) = found.stdout.split()
    command = [RAY, "drain-node", "--address", cluster.address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance reclaimed"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(command, env=cluster.environment, capture_output=True, check=True)


def test_elastic_training_saves_before_a_node_goes_and_uses_the_next_one(
    start: Callable[..., Command], cluster: ExternalCluster, file: Path
) -> None:
    run = file.parent / "runs" / "elastic"
    command = start(
        "run.name=elastic",
        "cluster.workers=2",  # one a node
        "cluster.cpus_per_worker=2",
        "cluster.min_workers=1",
        "cluster.resize_seconds=5",
        "training.epochs=10000",
        "checkpoint.keep_best=0",
        # How long Ray Train waits for CPUs of a node that it does not know to be gone.
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="5",
    )
    wait_for_epoch(run, 1, command)
    announce_preemption(cluster, seconds=20)
    wait_for(lambda: "a node is about to be taken away" in events(run), "the notice", command)
    cluster.lose_node()
    wait_for(lambda: records(run)[-1]["metrics"]["workers"] == 1, "an epoch with one worker", command)
    cluster.add_node()
    wait_for(lambda: records(run)[-1]["metrics"]["workers"] == 2, "an epoch with two workers", command)
    assert "the number of workers changes: saving the state of the run" in events(run)
    assert not (run / paths.SAVE).exists()
    command.process.send_signal(signal.SIGTERM)
    status, _, complaint = command.end()
    assert (status, complaint.strip()) == (130, "interrupted: rerun the same command to resume")
    assert paths.stored_checkpoints(run)[-1].name >= RunPosition(epochs_done(run)).name
    assert not (run / paths.STOP).exists()
    wait_for(lambda: cluster.state()["cpus"] == 4, "all CPUs")
    epochs = [record["epoch"] for record in records(run)]
    assert epochs == list(range(1, len(epochs) + 1))
    assert {record["metrics"]["train/skipped_images"] for record in records(run)} == {0.0}


def test_two_workers_one_of_which_and_whose_driver_are_killed_come_to_the_same_bits(
    start: Callable[..., Command], cluster: ExternalCluster, file: Path, tmp_path: Path, gate: Gate
) -> None:
    chance, options = random.Random(2), ("cluster.workers=2", "checkpoint.every_steps=1", OPTION)
    hurt = file.parent / "runs" / "hurt-2"
    first, then = RunPosition(0, chance.randrange(1, STEPS)), RunPosition(3, chance.randrange(1, STEPS))
    gate.close(first.steps + SOON)
    command = start("run.name=hurt-2", *options)
    wait_for_point(hurt, first, command)
    chance.choice(workers(cluster)).send_signal(signal.SIGKILL)
    assert epochs_done(hurt) < 2, "the worker died too late to show anything"
    gate.close(3 * STEPS + then.steps + SOON)
    wait_for_point(hurt, then, command)
    command.kill()
    assert epochs_done(hurt) < EPOCHS
    gate.open()
    command = start("run.name=hurt-2", *options)
    alone = train_in_ranks(settings_io.load(file, ["run.name=alone-2", *options, "training.callbacks=[]"]), tmp_path)
    status, _, complaint = command.end()
    assert (status, complaint) == (0, "")
    assert_same_bits(alone, hurt)
    assert [record["epoch"] for record in records(hurt)] == list(range(1, EPOCHS + 1))
    assert re.search(r"worker \d failed \(.*\): resuming from the latest checkpoint", events(hurt))
    client = MlflowClient(default_store(file.parent / "runs").uri)
    (tracked,) = client.search_runs(["1"], "attributes.run_name = 'hurt-2'")
    assert tracked.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(tracked.info.run_id, "train/loss")]
    assert steps == list(range(STEPS, STEPS * EPOCHS + 1, STEPS)), "no epoch twice, none missing"
    assert launcher.train(settings_io.load(file, ["run.name=hurt-2", *options])).already_finished
    with pytest.raises(UserError, match=r"run \S+/hurt-2 was started with other settings \(training\.seed: 0 → 1\)"):
        launcher.train(settings_io.load(file, ["run.name=hurt-2", "training.seed=1", *options]))


def test_four_workers_one_of_which_and_whose_controller_are_killed_come_to_the_same_bits(
    start: Callable[..., Command], cluster: ExternalCluster, file: Path, tmp_path: Path, gate: Gate
) -> None:
    chance = random.Random(4)
    first, then = RunPosition(0, chance.randrange(1, STEPS)), RunPosition(3, chance.randrange(1, STEPS))
    cluster.lose_node()
    gate.close(first.steps + SOON)
    # It waits for a node.
    command = start("run.name=hurt-4", "checkpoint.every_steps=1", "cluster.wait_minutes=3", OPTION)
    alone = train_in_ranks(settings_io.load(file, ["run.name=alone-4"]), tmp_path)
    cluster.add_node()
    hurt = alone.with_name("hurt-4")
    wait_for_point(hurt, first, command)
    chance.choice(workers(cluster)).send_signal(signal.SIGKILL)
    assert epochs_done(hurt) < 2, "the worker died too late to show anything"
    gate.close(3 * STEPS + then.steps + SOON)
    wait_for_point(hurt, then, command)
    (controller,) = [one for one in cluster.processes() if "TrainController" in title(one)]
    controller.send_signal(signal.SIGKILL)
    assert epochs_done(hurt) < EPOCHS, "it died too late to show anything"
    gate.open()
    status, _, complaint = command.end()
    assert (status, complaint) == (0, "")
    assert_same_bits(alone, hurt)
    assert "the controller of the training died: resuming from the latest checkpoint" in events(hurt)
