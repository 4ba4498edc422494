"""Claims about the benchmarks: that they measure what they say."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from ray.tune.schedulers import FIFOScheduler

from benchmarks import search
from benchmarks.fft_network import FourierNetwork
from benchmarks.geometries import GEOMETRIES, Geometry
from benchmarks.model_scaling import slope
from benchmarks.model_step import learned_multiply_adds
from benchmarks.model_traffic import Traffic, count
from benchmarks.overhead import Lines, Side, percent
from benchmarks.precision import compare
from benchmarks.yardstick import MULTIPLY_ADDS
from tests import parity

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_the_plain_network_computes_what_ours_does(skip: bool) -> None:
    torch.manual_seed(0)
    geometry = Geometry(widths=(6, 5, 4), angles=4, first_factorized_block=1, size=13, classes=3, batch=2)
    ours, plain = geometry.network(skip), FourierNetwork(geometry, skip)
    images = torch.randn(2, 3, 13, 13)
    x = images.to(torch.complex64)
    for mine, theirs, expected in zip(ours.blocks, plain.blocks, ours.features(images), strict=True):
        features, _ = parity.orders(mine)
        theirs.weight.data = torch.complex(*mine.projection.weight.data[..., features.argsort()])
        x = theirs(x)
        torch.testing.assert_close(torch.view_as_real(x).permute(2, 4, 3, 0, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "skip", "yardsticks"),
    [("cifar", False, 1.2), ("cifar", True, 3.0), ("imagenet", False, 0.9), ("imagenet", True, 2.4)],
)
def test_learned_products_are_counted(name: str, skip: bool, yardsticks: float) -> None:
    geometry = GEOMETRIES[name]
    with torch.device("meta"):
        network = geometry.network(skip)
    assert round(geometry.batch * learned_multiply_adds(network) / MULTIPLY_ADDS, 1) == yardsticks


def test_traffic_is_what_operations_read_and_write() -> None:
    x, y = torch.zeros(10, 20), torch.zeros(20, 5)
    for work, numbers in (
        (lambda: x @ y, 200 + 100 + 50),
        (lambda: x.view(4, 50).T, 0),
        (lambda: torch.empty(7), 0),
        (lambda: x.add_(1), 200 + 200),
        (lambda: x.zero_(), 200),
        (lambda: x.copy_(x[:1].expand(10, 20)), 20 + 200),
        (lambda: torch.neg(y, out=torch.empty(20, 5)), 100 + 100),
        (lambda: x.index_select(0, torch.tensor([1])), 20 + 2 + 20),  # an index takes two numbers of 4 bytes
    ):
        with Traffic() as traffic:
            work()
        assert sum(traffic.bytes.values()) == 4 * numbers


def test_the_gpu_path_moves_less_in_fewer_operations_and_a_batch_costs_no_operation() -> None:
    geometry = Geometry(widths=(6, 5, 4), angles=4, first_factorized_block=1, size=64, classes=3, batch=2)
    totals = {}
    for gpu in (False, True):
        for batch in (2, 64):
            traffic = count(geometry, False, torch.bfloat16, batch, gpu)
            totals[gpu, batch] = sum(traffic.bytes.values()) / batch, sum(traffic.operations.values())
    assert totals[True, 64][0] < totals[False, 64][0] and totals[True, 64][0] < totals[True, 2][0]
    assert totals[True, 64][1] == totals[True, 2][1] < 0.5 * totals[False, 64][1]


@pytest.mark.parametrize("oracle", [[], ["--oracle"]], ids=["ours", "plain"])
def test_the_step_benchmark_ends_with_one_line_of_json(oracle: list[str]) -> None:
    command = [sys.executable, "-m", "benchmarks.model_step", "--geometry", "cifar", "--batch", "2", "--rounds", "1"]
    done = subprocess.run([*command, *oracle], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result.keys() == {"yardsticks", "images_per_second", "peak_gb", "matmul_limit_fraction"}
    assert all(value > 0 for value in result.values())
    assert result["matmul_limit_fraction"] < 1


def test_the_step_benchmark_says_what_it_cannot_do() -> None:
    command = [sys.executable, "-m", "benchmarks.model_step", "--geometry", "cifar", "--precision", "bf16", "--oracle"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--oracle is complex, which has no bfloat16" in done.stderr


def test_the_profile_splits_the_step_into_its_parts() -> None:
    command = [sys.executable, "-m", "benchmarks.model_profile", "--geometry", "cifar", "--batch", "2"]
    done = subprocess.run([*command, "--rounds", "1"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    step = result.pop("step")
    assert result.keys() == {"wavelet", "modulus", "standardization", "projection", "rest"}
    assert sum(result.values()) == pytest.approx(step, abs=0.01)
    assert min(result["wavelet"], result["projection"]) > 0


def test_linear_growth_has_slope_one() -> None:
    assert slope([1, 4, 16], [0.1, 0.4, 1.6]) == pytest.approx(1)
    assert slope([1, 4, 16], [0.1, 0.2, 0.4]) == pytest.approx(0.5)


def test_precisions_are_compared_with_their_own_seed_and_seeds_with_each_other() -> None:
    losses = {("float32", 0): 1.0, ("float32", 1): 1.3, ("bfloat16", 0): 1.1, ("bfloat16", 1): 1.3}
    curves = {run: {"train/loss": [3.0, loss]} for run, loss in losses.items()}
    assert compare(curves, 2, "train/loss") == {
        "between_precisions": 0.025,
        "between_seeds": 0.15,
        "float32_at_the_end": 1.15,
        "bfloat16_at_the_end": 1.2,
    }


def test_scaling_compares_workers_that_communicate_with_others() -> None:
    command = [sys.executable, "-m", "benchmarks.scaling", "--geometry", "cifar", "--batch", "2"]
    done = subprocess.run([*command, "--rounds", "1", "--steps", "1"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert 0 < result["efficiency"] < 2
    with torch.device("meta"):
        learned = sum(each.numel() for each in GEOMETRIES["cifar"].network(False).parameters())
    assert result["gradient_megabytes"] == pytest.approx(4 * learned / 1e6, abs=0.01)
    assert result["images_per_second"].keys() == {"together", "alone"}


@pytest.fixture
def side(tmp_path: Path) -> Iterator[Side]:
    """One of two that take turns, with epochs of ten steps, whose process sleeps."""
    with subprocess.Popen(["sleep", "60"]) as one:
        steps = Lines(tmp_path / "steps")
        yield Side("run", psutil.Process(one.pid), [], steps, lambda: [1.0, 8.0, 12.0], epoch_steps=10, alone=True)
        one.kill()


@pytest.mark.parametrize(
    ("before", "steps", "inside"),
    [(11, 3, True), (17, 3, True), (18, 3, False), (19, 3, False), (20, 3, False), (21, 9, True), (21, 10, False)],
)
def test_steps_around_an_evaluation_do_not_count(side: Side, before: int, steps: int, inside: bool) -> None:
    assert side.within_an_epoch(before, steps) is inside


def test_the_lines_of_a_file_are_counted_while_it_grows(tmp_path: Path) -> None:
    file = tmp_path / "steps"
    lines = Lines(file)
    assert lines.count() == 0
    for text, expected in (("{}\n{}\n{", 2), ("}\n", 3), ("", 3)):
        with file.open("a") as growing:
            growing.write(text)
        assert lines.count() == expected


def test_a_turn_is_so_many_steps(side: Side, tmp_path: Path) -> None:
    (tmp_path / "steps").write_text("\n" * 11)

    def take_steps() -> None:
        for _ in range(4):
            time.sleep(0.2)
            with (tmp_path / "steps").open("a") as file:
                file.write("\n")

    assert side.steps.count() == 11
    taken = threading.Thread(target=take_steps)
    taken.start()
    seconds = side.turn(3)
    taken.join()
    assert seconds is not None and seconds >= 0.2
    assert side.steps.count() == 15
    assert side.process.status() == psutil.STATUS_STOPPED
    side.process.kill()
    with pytest.raises(SystemExit, match="the run ended"):
        side.turn(1)


def test_a_whole_run_is_counted_where_it_was_not_stopped(side: Side) -> None:
    side.turns = [(0.0, 5.0), (10.0, 15.0)]
    assert side.whole(3) == 6.0
    assert side.whole(2) == 4.0


def test_overhead_is_a_mean_with_its_confidence_interval() -> None:
    assert percent([1.01, 1.03, 1.02]) == (2.0, [-0.46, 4.51])
    assert percent([0.5, 2.0])[0] == 0.0, "noise alone gives zero"


def test_recorded_curves_give_each_scheduler_the_same_epochs() -> None:
    # The error after an epoch falls to 0.9 / (1 + quality); a network of ten times the cost is better by chance only.
    draw = random.Random(5)
    curves = []
    for number in range(40):
        end = draw.uniform(0.1, 0.8)
        errors = tuple(end + (0.9 - end) / (1 + 2 * epoch) for epoch in range(8))
        curves.append(search.Curve(f"n{number}", int(10 ** draw.uniform(5, 8)), errors))
    everything = search.replay(curves, FIFOScheduler(), range(40), 8 * 40)
    assert sorted(one.name for one in everything) == sorted(one.name for one in curves)
    assert search.hypervolume(everything, curves) == pytest.approx(1.0)
    assert len(search.replay(curves, FIFOScheduler(), range(40), 8 * 10)) <= 10
    assert search.hypervolume([], curves) == 0
    result = search.compare(curves, seeds=3)
    assert result["of"] == 3 and result["networks"] == 40
    assert result["hypervolume"]["pareto_halving"] > result["hypervolume"]["random"]
