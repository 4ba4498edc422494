"""Claims about searchers and schedulers: they are chosen by name, and a module outside the package adds to them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry
from pipeline.config.settings_io import resolve
from tuning import schedulers, searchers
from tuning.config import SearchSettings
from tuning.schedulers import build_scheduler, metric
from tuning.search_folder import Record

MODULE = """
from ray.tune.schedulers import MedianStoppingRule
from tuning.schedulers import SCHEDULERS, metric
from tuning.searchers import SEARCHERS
from tuning.space.candidate import Candidate

SEARCHERS.register("pair", lambda settings: [Candidate((4, 8)), Candidate((4, 8, 16))])
SCHEDULERS.register("mine", lambda settings: MedianStoppingRule(metric=metric(settings), mode="max"))
"""
PROGRAM = """
from pipeline.config.settings_io import resolve
from tuning import searchers
from tuning.config import SearchSettings
from tuning.schedulers import build_scheduler
content = {"train": {"data": {"path": "x"}}, "search": {"name": "s", "searcher": "pair", "scheduler": "mine"}}
settings = resolve(SearchSettings, content, "search.yaml")
found = searchers.SEARCHERS.find("pair")(settings)
print([one.name for one in found], type(build_scheduler(settings, {}, {})).__name__)
"""


COSTS = {"4-4": 1.0, "8-8": 2.0, "good0": 1.0, "good1": 1.0, "good2": 1.0, "bad": 1.0, "later": 1.0}
CONTROLLER: Any = None  # these schedulers do not ask it
Register = Callable[[str, Callable[[SearchSettings], TrialScheduler]], None]


@pytest.fixture
def register_scheduler(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Registers a scheduler for one test."""
    one_test = Registry[Callable[[SearchSettings], TrialScheduler]]("search.scheduler")
    monkeypatch.setattr(schedulers, "SCHEDULERS", one_test)
    return one_test.register


def settings(**search: object) -> SearchSettings:
    content = {
        "train": {"data": {"path": "x"}},
        "search": {"name": "s", "space": {"depth": [2], "width": [4]}, **search},
    }
    return resolve(SearchSettings, content, "search.yaml")


def test_a_scheduler_is_chosen_by_name_and_knows_the_trials_that_have_ended() -> None:
    assert isinstance(build_scheduler(settings(scheduler="none"), {}, {}), FIFOScheduler)
    ended = Record(status="completed", errors={1: 0.5, 2: 0.25})
    with_past = build_scheduler(settings(scheduler="asha"), {"4-4": ended, "8-8": Record(errors={1: 0.75})}, COSTS)
    assert isinstance(with_past, ASHAScheduler)
    assert (
        "Iter 2.000: 0.75" in with_past.debug_string()
    )  # the accuracy of the completed trial, at the rung of two epochs
    assert "0.75" not in build_scheduler(settings(scheduler="asha"), {}, {}).debug_string()


def test_a_scheduler_from_elsewhere_resumes_with_the_trials_that_have_ended(register_scheduler: Register) -> None:
    register_scheduler("median", lambda settings: MedianStoppingRule("epoch", metric(settings), "max", grace_period=1))
    records = {f"good{index}": Record(status="completed", errors={1: 0.2, 2: 0.1}) for index in range(3)}
    records |= {"bad": Record(status="failed"), "later": Record(errors={1: 0.9})}
    scheduler = build_scheduler(settings(scheduler="median"), records, COSTS)
    for error, decision in [(0.1, TrialScheduler.CONTINUE), (0.9, TrialScheduler.STOP)]:
        trial = Trial("new", stub=True)
        scheduler.on_trial_add(CONTROLLER, trial)
        result = {"epoch": 1, "holdout/top1": 1 - error}
        assert scheduler.on_trial_result(CONTROLLER, trial, result) == decision


def test_a_scheduler_that_needs_more_than_results_resumes_no_search(register_scheduler: Register) -> None:
    class Demanding(FIFOScheduler):
        def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
            tune_controller.pause_trial(trial)

    register_scheduler("demanding", lambda settings: Demanding())
    assert isinstance(build_scheduler(settings(scheduler="demanding"), {}, {}), Demanding)
    ended = {"8-8": Record(status="completed", errors={1: 0.5})}
    with pytest.raises(UserError, match=r"search\.scheduler: demanding cannot resume a search.*=asha or none$"):
        build_scheduler(settings(scheduler="demanding"), ended, COSTS)
    register_scheduler("asha", lambda settings: Demanding())
    with pytest.raises(UserError, match=r"asha cannot resume a search.*with search\.scheduler=none$"):
        build_scheduler(settings(scheduler="asha"), ended, COSTS)


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(
        UserError,
        match=r"'search\.scheduler' is 'pbt': must be 'pareto_halving', 'asha', 'hyperband', 'median' or 'none'",
    ):
        settings(scheduler="pbt")
    with pytest.raises(UserError, match=r"'search\.searcher' is 'oracle': must be 'grid'"):
        settings(searcher="oracle")


def test_the_grid_is_the_searcher_by_default() -> None:
    names = [one.name for one in searchers.grid(settings(space={"depth": [2], "width": [4, 8]}))]
    assert names == ["4-4", "8-8"]


def test_a_module_outside_the_package_adds_a_searcher_and_a_scheduler(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PHASECOLLAPSE_EXTENSIONS": "mine", "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['4-8', '4-8-16'] MedianStoppingRule", done.stderr
