"""The search space: which networks a search tries, and what each trial is measured on."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import UserError
from data_prep.format.manifest import load_manifest
from pipeline.config.schema import Settings
from pipeline.config.settings_io import resolve
from tuning import config, searchers
from tuning.config import SearchSettings
from tuning.searchers import Choice
from tuning.space import candidate
from tuning.space.candidate import Candidate

Choose = Callable[[SearchSettings], Choice]


def settings(train: dict[str, Any] | None = None, **search: Any) -> SearchSettings:
    content = {"train": {"data": {"path": "nowhere"}, **(train or {})}, "search": {"name": "test", **search}}
    return resolve(SearchSettings, content, "test.yaml")


@pytest.fixture
def choose(textures: Path) -> Choose:
    """Chooses the candidates of a search on a data set of 10 classes."""
    data = load_manifest(textures)
    return lambda search: searchers.choose(search, data)


def the_run(search: SearchSettings, one: Candidate) -> Settings:
    return candidate.trial_settings(search, one, Path("runs/test"), "sqlite:///runs/mlflow.db")


def test_width_doubles_at_each_octave_and_stops_at_the_cap() -> None:
    assert candidate.block_widths(7, 16, 100, first_factorized_block=0) == (16, 16, 32, 32, 64, 64, 100)
    assert candidate.block_widths(4, 16, 512, first_factorized_block=9) == (16, 32, 64, 128)
    assert candidate.block_widths(5, 8, 512, first_factorized_block=1) == (8, 16, 16, 32, 32)


def test_octaves_are_those_of_the_network() -> None:
    from pipeline import models
    from pipeline.config.model_schema import ScatteringSettings

    for first_factorized in (0, 1, 2):
        depth = 4
        model = ScatteringSettings(widths=(2,) * depth, first_factorized_block=first_factorized)
        network = models.build(model, classes=2, image_size=48)
        sides = [48, *(block.wavelets.output[0] for block in network.network.blocks)][:depth]
        assert [candidate.octave(block, first_factorized) for block in range(depth)] == [
            round(math.log2(48 / s)) for s in sides
        ]


def test_the_grid_is_tried_whole_and_each_network_once(choose: Choose) -> None:
    names = [one.name for one in choose(settings(space={"depth": [1, 3], "width": [8, 16], "max_width": 8})).candidates]
    assert names == ["8", "8-8-8"]


def test_the_draw_is_decided_by_the_seed(choose: Choose) -> None:
    def draw(seed: int) -> list[str]:
        grid = settings(space={"depth": [1, 2, 3, 4], "width": [4, 8, 16, 32]}, trials=5, seed=seed)
        return [one.name for one in choose(grid).candidates]

    assert draw(1) == draw(1) != draw(2)
    assert len(draw(1)) == 5


def test_named_candidates_come_after_the_grid_and_carry_their_own_settings(choose: Choose) -> None:
    search = settings(
        space={"depth": [2], "width": [8]}, candidates=[{"widths": [2], "optimizer.learning_rate": 1e-05}]
    )
    tried = choose(search).candidates
    assert [one.name for one in tried] == ["8-8", "2_learning_rate-1e-05"]
    bad = the_run(search, tried[1])
    assert (bad.model.widths, bad.optimizer.learning_rate) == ((2,), 1e-05)
    assert the_run(search, tried[0]).optimizer == search.train.optimizer


def test_trials_are_measured_on_held_out_training_images_whatever_the_file_says(choose: Choose) -> None:
    search = settings({"data": {"path": "nowhere", "evaluate_on": "validation"}}, space={"depth": [2], "width": [8]})
    trial = the_run(search, choose(search).candidates[0])
    assert trial.data.evaluate_on == "holdout"
    assert (trial.run.storage, trial.run.name) == ("runs/test", "8-8")
    assert trial.tracking.uri == "sqlite:///runs/mlflow.db"


@pytest.mark.parametrize(
    ("train", "search", "words"),
    [
        ({}, {}, "nothing to try"),
        ({}, {"space": {"depth": [2], "width": {"uniform": [1, 2]}}}, "space.width is a range.*points"),
        ({}, {"space": {"depth": [2], "width": [8]}, "searcher": "random"}, "trials must be set"),
        ({}, {"space": {"depth": {"integr": [1, 2]}, "width": [8]}}, "integr"),
        ({}, {"space": {"depth": [2], "width": [8]}, "constraints": {"max_memory": "12 GiB"}}, "max_memory"),
        ({}, {"space": {"depth": [2], "width": [8]}, "rungs": 3}, "unknown setting 'search.rungs'"),
        ({}, {"space": {"depth": [2], "width": [8]}, "reduction_factor": 1}, "search.reduction_factor"),
        ({"run": {"name": "mine"}}, {"space": {"depth": [2], "width": [8]}}, "train.run.name"),
        ({"data": {"path": "nowhere", "holdout": 0}}, {"space": {"depth": [2], "width": [8]}}, "train.data.holdout"),
        ({"cluster": {"workers": 0}}, {"space": {"depth": [2], "width": [8]}}, "train.cluster.workers"),
        ({"training": {"epochs": 1}}, {"space": {"depth": [2], "width": [8]}}, "search.grace_epochs"),
    ],
)
def test_wrong_settings_are_named(train: dict[str, Any], search: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(train, **search)


@pytest.mark.parametrize(
    ("point", "words"),
    [
        ({"widths": 8}, "list of whole numbers"),
        ({"widths": [8], "optimizer.speed": 3}, "unknown setting 'optimizer.speed'"),
        ({"widths": [8], "optimizer.momentum": 2}, "optimizer.momentum"),
        ({"widths": [8], "data.holdout": 0.5}, "data.holdout"),
        ({"widths": [0]}, "model.widths"),
        ({"depth": 2}, "need width"),
        ({"depth": 2, "width": 4, "widths": [4]}, "not both"),
        ({"depth": "two", "width": 4}, "must be numbers"),
        ({"training.epochs": 3}, "cannot differ between trials"),
    ],
)
def test_wrong_candidates_are_named(choose: Choose, point: dict[str, Any], words: str) -> None:
    search = settings(candidates=[point])
    with pytest.raises(UserError, match=words):
        choose(search)


def test_overrides_reach_every_level(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("train: {data: {path: nowhere}}\nsearch: {name: test, space: {depth: [2], width: [8]}}\n")
    loaded = config.load(file, ["train.training.epochs=7", "search.trials=1", "train.data.holdout=0.2"])
    assert (loaded.train.training.epochs, loaded.search.trials, loaded.train.data.holdout) == (7, 1, 0.2)


def test_the_examples_of_the_command_have_settings_that_exist() -> None:
    from tuning.cli import tune

    lines = [shlex.split(line) for line in (tune.help or "").splitlines() if "phasecollapse tune configs/" in line]
    overrides = [[word for word in line[3:] if not word.startswith("--")] for line in lines]
    assert any(overrides)
    for line, changed in zip(lines, overrides, strict=True):
        config.load(Path(line[2]), changed)


def test_long_names_are_shortened_and_stay_apart() -> None:
    names = [candidate.Candidate((8, 16) * 90 + (last,)).name for last in (1, 2)]
    assert len(set(names)) == 2 and max(map(len, names)) <= 200
    assert names[0].startswith("8-16-8-16")


@pytest.mark.parametrize(("one", "other"), [("a/b", "a b"), ([1], -1), ("x.", "x"), (1e30, 1e-30)])
def test_values_that_a_folder_name_cannot_hold_stay_apart(one: Any, other: Any) -> None:
    names = {Candidate((8,), {"model.anything": value}).name for value in (one, other)}
    assert len(names) == 2 and all(re.fullmatch(r"8_anything[A-Za-z0-9._-]+", name) for name in names)


def test_widths_grow_by_the_law_that_the_space_names(choose: Choose) -> None:
    search = settings(space={"depth": [4], "width": [10], "growth": [1.5, 3.0], "max_width": 60})
    assert [one.widths for one in choose(search).candidates] == [(10, 10, 15, 15), (10, 10, 30, 30)]


def test_a_space_of_other_settings_keeps_the_widths_that_all_share(choose: Choose) -> None:
    search = settings({"model": {"widths": [3, 5]}}, space={"optimizer": {"learning_rate": [0.1, 0.2]}})
    tried = choose(search).candidates
    assert [one.widths for one in tried] == [(3, 5), (3, 5)]
    assert [the_run(search, one).optimizer.learning_rate for one in tried] == [0.1, 0.2]


def test_random_points_are_drawn_by_the_seed_each_once(choose: Choose) -> None:
    space = {
        "depth": {"integer": [1, 3]},
        "width": {"log_integer": [2, 16]},
        "optimizer.momentum": {"uniform": [0, 0.9]},
    }
    first, again, other = (
        [one.name for one in choose(settings(space=space, searcher="random", trials=6, seed=seed)).candidates]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 6
    more = choose(settings(space=space, searcher="random", trials=9, seed=1)).candidates
    assert [one.name for one in more][:6] == first, "a longer draw begins with the shorter one"
    few = choose(settings(space={"depth": [1], "width": [2, 3]}, searcher="random", trials=9)).candidates
    assert {one.name for one in few} == {"2", "3"}


def test_networks_above_a_budget_are_left_out_and_counted(choose: Choose) -> None:
    space = {"depth": [1, 2], "width": [4, 64]}
    train = {"data": {"path": "nowhere", "image_size": 16}, "model": {"classifier": "pooled"}}
    free = choose(settings(train, space=space)).candidates
    with_limit = choose(settings(train, space=space, constraints={"max_parameters": "1k"}))
    assert [one.name for one in free] == ["4", "64", "4-4", "64-64"]
    assert [one.name for one in with_limit.candidates] == ["4", "4-4"]
    assert str(with_limit) == "2 points (2 were left out: above search.constraints.max_parameters)"
    for limit in ("max_multiply_adds", "max_memory"):
        with pytest.raises(UserError, match=rf"none of 4 points can be tried: above search\.constraints\.{limit}"):
            choose(settings(train, space=space, constraints={limit: 1000}))
    with pytest.raises(UserError, match=r"search\.candidates: 64: above search\.constraints\.max_parameters"):
        choose(settings(train, candidates=[{"widths": [64]}], constraints={"max_parameters": "1k"}))


def test_points_that_make_no_network_are_left_out_with_the_reason(choose: Choose) -> None:
    search = settings({"data": {"path": "nowhere", "image_size": 16}}, space={"depth": [1, 40], "width": [2]})
    choice = choose(search)
    assert [one.name for one in choice.candidates] == ["2"]
    assert list(choice.left_out.values()) == [1] and "16" in next(iter(choice.left_out))


@pytest.mark.parametrize(("text", "amount"), [("500M", 500_000_000), ("1.5G", 1_500_000_000), ("64k", 64_000), (7, 7)])
def test_budgets_may_have_a_suffix(text: Any, amount: int) -> None:
    assert (
        settings(space={"depth": [1], "width": [2]}, constraints={"max_memory": text}).search.constraints.max_memory
        == amount
    )


def test_a_grid_is_looked_through_to_its_end(choose: Choose) -> None:
    rates = {"log_uniform": [1e-4, 1.0], "points": 1100}
    train = {"data": {"path": "nowhere", "image_size": 8}, "model": {"classifier": "pooled", "widths": [1]}}
    space = {"widths": [[200], [1]], "optimizer.learning_rate": rates}
    found = choose(settings(train, space=space, constraints={"max_parameters": "1k"}))
    assert {one.widths for one in found.candidates} == {(1,)}
    assert sum(found.left_out.values()) > 1000
