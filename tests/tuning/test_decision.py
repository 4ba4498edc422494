"""The decision that a search ends in: intervals of errors, the best network within a budget, the run to train."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from data_prep.common.errors import UserError
from data_prep.format.manifest import load_manifest
from pipeline.config import settings_io
from tuning import cli, search_folder
from tuning.config import load
from tuning.results import decision, frontier, intervals
from tuning.results.frontier import Row
from tuning.space.candidate import Candidate


def row(name: str, cost: int, error: float | None, *, parameters: int = 10, status: str = "completed") -> Row:
    return Row(name, (2,), parameters, cost, error, 3, status, images=1000)


def test_the_interval_of_an_error_is_wilsons() -> None:
    # 1.96 standard errors of p solve (p̂ − p)² = z² p (1 − p) / n.
    z = 1.959963984540054
    for errors, images in ((0, 40), (5, 40), (20, 40), (40, 40), (100, 947)):
        rate, low, high = errors / images, *intervals.of_error(errors / images, images)
        for end in (low, high):
            if 0 < end < 1:
                assert abs(rate - end) == pytest.approx(z * math.sqrt(end * (1 - end) / images), rel=1e-6)
        assert 0 <= low <= rate <= high <= 1


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says() -> None:
    draw = random.Random(3)
    images, one, other, repeats = 200, 0.3, 0.2, 600
    covered = 0
    for _ in range(repeats):
        first, second = (sum(draw.random() < rate for _ in range(images)) / images for rate in (one, other))
        low, high = intervals.of_difference(first, second, images)
        covered += low <= one - other <= high
    assert 0.92 < covered / repeats <= 1


def test_what_the_images_tell_apart() -> None:
    assert intervals.are_apart(0.30, 0.20, 1000) and intervals.are_apart(0.20, 0.30, 1000)
    assert not intervals.are_apart(0.30, 0.20, 60)
    assert not intervals.are_apart(0.25, 0.25, 10**6)


def test_the_best_within_limits_is_the_one_with_the_smallest_error() -> None:
    rows = [row("small", 10, 0.5), row("middle", 20, 0.3, parameters=99), row("large", 30, 0.2)]
    rows.append(row("cut", 5, 0.1, status="stopped early"))
    no_limit = {"multiply_adds": None, "parameters": None}
    assert decision.best_within(rows, no_limit).name == "large"
    assert decision.best_within(rows, {"multiply_adds": 29}).name == "middle"
    assert decision.best_within(rows, {"multiply_adds": 20, "parameters": 98}).name == "small"
    with pytest.raises(UserError, match="multiply-adds start at 10"):
        decision.best_within(rows, {"multiply_adds": 9})
    with pytest.raises(UserError, match="no completed trial yet"):
        decision.best_within(rows[3:], no_limit)


def test_cheaper_networks_that_may_be_as_good_are_named() -> None:
    rows = [row("worse", 5, 0.5), row("same", 10, 0.21), row("best", 30, 0.2), row("larger", 40, 0.2)]
    assert [one.name for one in decision.not_told_apart(rows[2], rows)] == ["same"]
    said = frontier.told_apart(rows)
    assert said == "1,000 images do not tell apart, with 95 % confidence: same and best"
    assert "tell all neighbors" in frontier.told_apart([rows[0], rows[2]])
    assert "nothing to tell apart" in frontier.told_apart(rows[:1])


@pytest.fixture
def searched(tmp_path: Path, textures: Path) -> Path:
    """The folder of a search of three networks, of which two are completed."""
    file = tmp_path / "search.yaml"
    content: dict[str, Any] = {
        "train": {
            "data": {"path": str(textures), "image_size": 16, "holdout": 0.2},
            "run": {"storage": str(tmp_path / "runs")},
            "training": {"epochs": 2},
        },
        "search": {"name": "s", "space": {"depth": [1], "width": [2, 4, 8]}, "grace_epochs": 1},
    }
    file.write_text(yaml.safe_dump(content))
    settings = load(file)
    with search_folder.claim(settings, load_manifest(textures)) as folder:
        folder.begin()
        folder.expect([Candidate((2,)), Candidate((4,), {"optimizer.learning_rate": 0.25}), Candidate((8,))])
        for name, error in (("2", 0.6), ("4_learning_rate-0.25", 0.25)):
            done = {"status": "completed", "errors": {1: 0.7, 2: error}}
            folder.update(name, folder.record(name).model_copy(update=done))
    return folder.path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.search, list(arguments))


def test_show_gives_the_table_with_intervals_at_any_time(searched: Path) -> None:
    shown = run("show", str(searched))
    assert shown.exit_code == 0, shown.output
    assert "0.2500 *" in shown.output and "pending" in shown.output
    low, high = intervals.of_error(0.25, 49)
    assert f"{low:.3f}–{high:.3f}" in shown.output
    assert "pending" not in run("show", str(searched), "--frontier").output


def test_pick_writes_a_run_that_train_takes(searched: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    picked = run("pick", str(searched), "--epochs", "9", "-o", str(file))
    assert picked.exit_code == 0, picked.output
    assert f"phasecollapse train {file}" in picked.output
    settings = settings_io.load(file)
    assert (settings.model.widths, settings.optimizer.learning_rate, settings.training.epochs) == ((4,), 0.25, 9)
    assert (settings.data.holdout, settings.data.evaluate_on) == (0.0, "validation")
    assert settings.run.storage == str(tmp_path / "runs"), "not in the folder of the search"
    assert file.read_text().startswith("# trial 4_learning_rate-0.25 of search s: top-1 error 0.2500")
    again = run("pick", str(searched), "-o", str(file))
    assert isinstance(again.exception, UserError) and "exists already" in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--max-multiply-adds", "1k"], "multiply-adds start at"),
        (["--max-parameters", "many"], "no number such as 500M"),
        (["--max-parameters", "-3"], "no number such as 500M"),
    ],
)
def test_limits_that_no_network_meets_are_named(searched: Path, arguments: list[str], says: str) -> None:
    refused = run("pick", str(searched), *arguments, "-o", str(searched.parent / "run.yaml"))
    assert refused.exit_code != 0
    assert says in refused.output + str(refused.exception)


def test_a_folder_that_is_no_search_is_named(tmp_path: Path) -> None:
    assert "is no folder of a search" in str(run("show", str(tmp_path)).exception)
    (tmp_path / "search.yaml").write_text("id: 1\n")
    assert "search.yaml cannot be read" in str(run("show", str(tmp_path)).exception)
