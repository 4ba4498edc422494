"""Claims about the importance of settings: on errors that are known functions of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from pipeline.config.settings_io import resolve
from tuning.config import SearchSettings
from tuning.results import importance
from tuning.search_folder import Record

SPACE: dict[str, Any] = {
    "optimizer.learning_rate": {"log_uniform": [1e-3, 1.0]},
    "model.skip": [True, False],
    "optimizer.momentum": {"uniform": [0.0, 0.9], "when": {"model.skip": True}},
    "training.batch_size": [16, 32, 64],
    "growth": [2],
    "depth": [2],
    "width": [4],
}


def settings(space: dict[str, Any] = SPACE) -> SearchSettings:
    content = {
        "train": {"data": {"path": "x"}},
        "search": {"name": "s", "space": space, "searcher": "random", "trials": 9},
    }
    return resolve(SearchSettings, content, "test.yaml")


def records(count: int, **shared: Any) -> dict[str, Record]:
    """The error depends on the batch size, three times as much as on skip, and not on the learning rate."""
    draw = random.Random(0)
    found = {}
    for number in range(count):
        skip, size = draw.random() < 0.5, draw.choice([16, 32, 64])
        point = {"optimizer.learning_rate": 10 ** draw.uniform(-3, 0), "model.skip": skip, "training.batch_size": size}
        point |= {"growth": 2, "depth": 2, "width": 4} | ({"optimizer.momentum": 0.5} if skip else {})
        error = 0.3 + 0.002 * size + 0.03 * skip
        found[str(number)] = Record(status="completed", errors={1: 0.9, 2: error}, coordinates=point, **shared)
    return found


def test_settings_have_the_shares_that_the_errors_give_them() -> None:
    found = importance.measure(settings(), records(60))
    assert found is not None and (found.trials, found.epoch, found.few) == (60, 2, False)
    assert list(found.shares) == ["training.batch_size", "model.skip", "optimizer.learning_rate"]
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["training.batch_size"] > 0.7 and found.shares["optimizer.learning_rate"] < 0.05
    assert found.conditional == ("optimizer.momentum",)
    assert found.describe()[1].endswith("optimizer.momentum") and "fANOVA on 60 trials" in found.describe()[0]
    again = importance.measure(settings(), records(60))
    assert again == found, "the forest has a seed"


def test_trials_are_compared_after_an_epoch_that_enough_have_reached() -> None:
    trials = records(60)
    for number, one in enumerate(trials.values()):
        if number < 30:
            one.errors[8] = 0.5 - one.errors[2]
    found = importance.measure(settings(), trials)
    assert found is not None and (found.epoch, found.trials) == (2, 60), "7 dimensions need 35 trials"


def test_too_few_trials_are_said() -> None:
    found = importance.measure(settings(), records(8))
    assert found is not None and found.few
    assert found.describe()[-1].startswith("warning: 8 trials are too few")
    assert importance.measure(settings(), records(3)) is None
    assert importance.measure(settings(), {}) is None
    same = {name: one.model_copy(update={"errors": {1: 0.5}}) for name, one in records(30).items()}
    assert importance.measure(settings(), same) is None, "nothing to explain"
