"""The search space: which networks a search tries, and what each trial is measured on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import UserError
from pipeline.config.schema import Settings
from pipeline.config.settings_io import resolve
from tuning import config, space
from tuning.config import SearchSettings
from tuning.space import Candidate


def settings(train: dict[str, Any] | None = None, **search: Any) -> SearchSettings:
    content = {"train": {"data": {"path": "nowhere"}, **(train or {})}, "search": {"name": "test", **search}}
    return resolve(SearchSettings, content, "test.yaml")


def the_run(search: SearchSettings, candidate: Candidate) -> Settings:
    return space.trial_settings(search, candidate, Path("runs/test"), "sqlite:///runs/mlflow.db")


def test_width_doubles_at_each_octave_and_stops_at_the_cap() -> None:
    assert space.block_widths(7, 16, 100, first_factorized_block=0) == (16, 16, 32, 32, 64, 64, 100)
    assert space.block_widths(4, 16, 512, first_factorized_block=9) == (16, 32, 64, 128)
    assert space.block_widths(5, 8, 512, first_factorized_block=1) == (8, 16, 16, 32, 32)


def test_octaves_are_those_of_the_network() -> None:
    from pipeline import models
    from pipeline.config.model_schema import ScatteringSettings

    for first_factorized in (0, 1, 2):
        depth = 4
        model = ScatteringSettings(widths=(2,) * depth, first_factorized_block=first_factorized)
        network = models.build(model, classes=2, image_size=48)
        sides = [48, *(block.wavelets.output[0] for block in network.network.blocks)][:depth]
        assert [space.octave(block, first_factorized) for block in range(depth)] == [
            round(math.log2(48 / s)) for s in sides
        ]


def test_the_grid_is_tried_whole_and_each_network_once() -> None:
    names = [one.name for one in space.candidates(settings(depths=[1, 3], widths=[8, 16], max_width=8))]
    assert names == ["8", "8-8-8"]


def test_the_draw_is_decided_by_the_seed() -> None:
    def draw(seed: int) -> list[str]:
        grid = settings(depths=[1, 2, 3, 4], widths=[4, 8, 16, 32], trials=5, seed=seed)
        return [one.name for one in space.candidates(grid)]

    assert draw(1) == draw(1) != draw(2)
    assert len(draw(1)) == 5


def test_named_candidates_come_after_the_grid_and_carry_their_own_settings() -> None:
    search = settings(depths=[2], widths=[8], candidates=[{"widths": [2], "optimizer.learning_rate": 1e-05}])
    tried = space.candidates(search)
    assert [one.name for one in tried] == ["8-8", "2_learning_rate-1e-05"]
    bad = the_run(search, tried[1])
    assert (bad.model.widths, bad.optimizer.learning_rate) == ((2,), 1e-05)
    assert the_run(search, tried[0]).optimizer == search.train.optimizer


def test_trials_are_measured_on_held_out_training_images_whatever_the_file_says() -> None:
    search = settings({"data": {"path": "nowhere", "evaluate_on": "validation"}}, depths=[2], widths=[8])
    trial = the_run(search, space.candidates(search)[0])
    assert trial.data.evaluate_on == "holdout"
    assert (trial.run.storage, trial.run.name) == ("runs/test", "8-8")
    assert trial.tracking.uri == "sqlite:///runs/mlflow.db"


@pytest.mark.parametrize(
    ("train", "search", "words"),
    [
        ({}, {"depths": [2]}, "give both"),
        ({}, {}, "nothing to try"),
        ({}, {"candidates": [{"optimizer.learning_rate": 1}]}, "needs widths"),
        ({}, {"depths": [2], "widths": [8], "rungs": 3}, "unknown setting 'search.rungs'"),
        ({}, {"depths": [2], "widths": [8], "reduction_factor": 1}, "search.reduction_factor"),
        ({"run": {"name": "mine"}}, {"depths": [2], "widths": [8]}, "train.run.name"),
        ({"data": {"path": "nowhere", "holdout": 0}}, {"depths": [2], "widths": [8]}, "train.data.holdout"),
        ({"cluster": {"workers": 0}}, {"depths": [2], "widths": [8]}, "train.cluster.workers"),
        ({"training": {"epochs": 1}}, {"depths": [2], "widths": [8]}, "search.grace_epochs"),
    ],
)
def test_wrong_settings_are_named(train: dict[str, Any], search: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(train, **search)


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        ({"widths": 8}, "list of whole numbers"),
        ({"widths": [8], "optimizer.speed": 3}, "unknown setting 'optimizer.speed'"),
        ({"widths": [8], "optimizer.momentum": 2}, "optimizer.momentum"),
        ({"widths": [8], "data.holdout": 0.5}, "data.holdout"),
        ({"widths": [0]}, "model.widths"),
    ],
)
def test_wrong_candidates_are_named(candidate: dict[str, Any], words: str) -> None:
    search = settings(candidates=[candidate])
    with pytest.raises(UserError, match=words):
        for one in space.candidates(search):
            the_run(search, one)


def test_overrides_reach_every_level(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text("train: {data: {path: nowhere}}\nsearch: {name: test, depths: [2], widths: [8]}\n")
    loaded = config.load(file, ["train.training.epochs=7", "search.trials=1", "train.data.holdout=0.2"])
    assert (loaded.train.training.epochs, loaded.search.trials, loaded.train.data.holdout) == (7, 1, 0.2)


def test_long_names_are_shortened_and_stay_apart() -> None:
    names = [space.Candidate((8, 16) * 90 + (last,)).name for last in (1, 2)]
    assert len(set(names)) == 2 and max(map(len, names)) <= 200
    assert names[0].startswith("8-16-8-16")
