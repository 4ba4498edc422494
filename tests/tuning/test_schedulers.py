"""Claims about searchers and schedulers: they are chosen by name, and a module outside the package adds to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from data_prep.common.errors import UserError
from pipeline.config.settings_io import resolve
from tuning import space
from tuning.config import SearchSettings
from tuning.schedulers import build_scheduler
from tuning.search_folder import Record

MODULE = """
from ray.tune.schedulers import MedianStoppingRule
from tuning.schedulers import SCHEDULERS, metric
from tuning.space import SEARCHERS, Candidate

SEARCHERS.register("pair", lambda settings: [Candidate((4, 8)), Candidate((4, 8, 16))])
SCHEDULERS.register("median", lambda settings: MedianStoppingRule(metric=metric(settings), mode="max"))
"""
PROGRAM = """
from pipeline.config.settings_io import resolve
from tuning import space
from tuning.config import SearchSettings
from tuning.schedulers import build_scheduler
content = {"train": {"data": {"path": "x"}}, "search": {"name": "s", "searcher": "pair", "scheduler": "median"}}
settings = resolve(SearchSettings, content, "search.yaml")
print([one.name for one in space.candidates(settings)], type(build_scheduler(settings, [])).__name__)
"""


def settings(**search: object) -> SearchSettings:
    content = {"train": {"data": {"path": "x"}}, "search": {"name": "s", "depths": [2], "widths": [4], **search}}
    return resolve(SearchSettings, content, "search.yaml")


def test_a_scheduler_is_chosen_by_name_and_knows_the_trials_that_have_ended() -> None:
    assert isinstance(build_scheduler(settings(scheduler="none"), []), FIFOScheduler)
    ended = Record(status="completed", errors={1: 0.5, 2: 0.25})
    with_past = build_scheduler(settings(), [("4-4", ended), ("8-8", Record(errors={1: 0.75}))])
    assert isinstance(with_past, ASHAScheduler)
    assert (
        "Iter 2.000: 0.75" in with_past.debug_string()
    )  # the accuracy of the completed trial, at the rung of two epochs
    assert "0.75" not in build_scheduler(settings(), []).debug_string()


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'search\.scheduler' is 'pbt': Input should be 'asha' or 'none'"):
        settings(scheduler="pbt")
    with pytest.raises(UserError, match=r"'search\.searcher' is 'oracle': Input should be 'grid'"):
        settings(searcher="oracle")


def test_the_grid_is_the_searcher_by_default() -> None:
    assert [one.name for one in space.candidates(settings(widths=[4, 8]))] == ["4-4", "8-8"]


def test_a_module_outside_the_package_adds_a_searcher_and_a_scheduler(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PHASECOLLAPSE_EXTENSIONS": "mine", "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['4-8', '4-8-16'] MedianStoppingRule", done.stderr
