"""Successive halving by error and cost: the ranking against a second, plain one, and what it keeps."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from tuning.pareto_halving import COST, ParetoHalving, rungs
from tuning.results.dominance import Point, crowding_distances, fronts, ranking

CONTROLLER: Any = None  # these schedulers do not ask it
METRIC = "holdout/top1"


def points_of(seed: int) -> list[Point]:
    draw = random.Random(seed)
    return [(draw.randrange(6) / 6, float(10 ** draw.randrange(6))) for _ in range(draw.randrange(1, 14))]


def peeled(points: list[Point]) -> list[int]:
    """Front of each point, by its definition: take away those that no other left one dominates, and again."""
    front = [-1] * len(points)
    number = 0
    while -1 in front:
        left = [index for index, one in enumerate(front) if one == -1]
        for index in left:
            error, cost = points[index]
            others = [points[other] for other in left]
            if not any(e <= error and c <= cost and (e, c) != (error, cost) for e, c in others):
                front[index] = number
        number += 1
    return front


@pytest.mark.parametrize("seed", range(60))
def test_fronts_are_those_of_the_definition(seed: int) -> None:
    points = points_of(seed)
    assert fronts(points) == peeled(points)


def test_the_ends_of_a_front_are_kept_first_and_a_crowded_middle_last() -> None:
    assert crowding_distances([(0.1, 4.0), (0.2, 3.0), (0.3, 2.0), (0.9, 1.0)]) == pytest.approx(
        [math.inf, 0.2 / 0.8 + 2 / 3, 0.7 / 0.8 + 2 / 3, math.inf]
    )
    #          best       in a crowd               apart       cheapest   dominated
    points = [(0.1, 1e9), (0.30, 1e7), (0.31, 9e6), (0.4, 1e5), (0.9, 1e4), (0.5, 1e8)]
    assert ranking(points) == [0, 4, 3, 1, 2, 5]


def test_points_that_are_equal_or_alone_are_ranked_too() -> None:
    assert ranking([(0.5, 1.0)]) == [0]
    assert sorted(ranking([(0.5, 1.0)] * 3)) == [0, 1, 2]
    assert ranking([]) == []


def test_rungs_are_multiples_of_the_first_below_the_end() -> None:
    assert rungs(1, 2.0, 9) == [1, 2, 4, 8]
    assert rungs(2, 3.0, 18) == [2, 6]
    assert rungs(1, 1.2, 4) == [1, 2, 3]
    assert rungs(4, 2.0, 4) == []


def decide(scheduler: TrialScheduler, name: str, error: float, cost: float, epoch: int = 1) -> bool:
    """Whether a trial continues after an epoch."""
    trial = Trial(name, trial_id=name, stub=True)
    scheduler.on_trial_add(CONTROLLER, trial)
    result = {"epoch": epoch, METRIC: 1 - error, COST: cost}
    return bool(scheduler.on_trial_result(CONTROLLER, trial, result) == TrialScheduler.CONTINUE)


def test_the_cheapest_network_survives_where_halving_by_error_stops_it() -> None:
    # Wide ones with smaller errors, then one that costs a hundredth, then one that costs as much as the wide ones do.
    trials = [(f"wide{index}", 0.30 + 0.01 * index, 1e9) for index in range(5)]
    by_error = ASHAScheduler("epoch", METRIC, "max", max_t=8, grace_period=1, reduction_factor=2)
    by_both = ParetoHalving(METRIC, first=1, factor=2, epochs=8)
    for scheduler, cheap_survives in ((by_error, False), (by_both, True)):
        for trial in trials:
            decide(scheduler, *trial)
        assert decide(scheduler, "cheap", 0.5, 1e7) is cheap_survives
        assert not decide(scheduler, "useless", 0.9, 1e9)


def test_trials_are_compared_at_rungs_only_and_with_those_that_reached_them() -> None:
    scheduler = ParetoHalving(METRIC, first=2, factor=2, epochs=8)
    assert all(decide(scheduler, f"{index}", 0.1 * index, 1e6) for index in range(1, 5))  # epoch 1 is no rung
    assert decide(scheduler, "slow", 0.9, 1e6, epoch=2)  # the first there
    assert decide(scheduler, "good", 0.2, 1e6, epoch=2)
    assert decide(scheduler, "second", 0.5, 1e6, epoch=2)  # two of three
    assert not decide(scheduler, "third", 0.6, 1e6, epoch=2)
    assert "epoch 2: 4, epoch 4: 0" in scheduler.debug_string()
