"""The power law through a frontier, beside a plain implementation and laws that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tuning.results import power_law

COSTS = [1e6, 2e6, 4e6, 8e6, 16e6, 32e6]


def points(noise: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    draw = np.random.default_rng(seed).normal(0, noise, len(COSTS))
    return [(cost, 10 * cost**-0.25 * math.exp(each)) for cost, each in zip(COSTS, draw, strict=True)]


def test_a_law_without_noise_is_found_and_predicts_exactly() -> None:
    law = power_law.fit(points())
    assert law is not None
    assert (law.factor, law.exponent) == pytest.approx((10.0, 0.25))
    assert law.error(1e9) == pytest.approx(10 * 1e9**-0.25)
    assert law.interval(1e9) == pytest.approx((law.error(1e9),) * 2)
    checked = power_law.check(points())
    assert checked is not None and (checked.largest, checked.cost) == (16e6, 32e6)
    assert checked.law.error(32e6) == pytest.approx(checked.error)


def test_the_intervals_hold_as_often_as_they_say() -> None:
    trials, inside, expected = 2000, 0, 0
    for seed in range(trials):
        law = power_law.fit(points(noise=0.1, seed=seed))
        assert law is not None
        low, high = law.exponent_interval
        inside += low <= 0.25 <= high
        further = 10 * 64e6**-0.25 * math.exp(np.random.default_rng(seed + trials).normal(0, 0.1))
        low, high = law.interval(64e6)
        expected += low <= further <= high
    spread = 3 * math.sqrt(0.05 * 0.95 / trials)
    assert inside / trials == pytest.approx(0.95, abs=spread)
    assert expected / trials == pytest.approx(0.95, abs=spread)


def test_the_check_keeps_the_costliest_network_back_and_what_costs_more_than_half_of_it() -> None:
    found = power_law.check([*points(noise=0.02), (30e6, 0.9)])
    without = power_law.check(points(noise=0.02))
    assert found == without and found is not None and found.holds


def test_an_error_far_from_the_law_is_said_to_break_it() -> None:
    *some, (cost, _) = points(noise=0.02)
    broken = [*some, (cost, 0.5)]
    found = power_law.check(broken)
    assert found is not None and not found.holds
    assert any("was measured: the law does not hold" in line for line in power_law.describe(broken, "multiply-adds"))
    assert any(line.endswith("the law holds") for line in power_law.describe(points(noise=0.02), "multiply-adds"))


@pytest.mark.parametrize("few", [[], points()[:2], [(1e6, 0.5)] * 5, [(cost, 0.0) for cost in COSTS]])
def test_with_too_few_points_there_is_no_law(few: list[tuple[float, float]]) -> None:
    assert power_law.fit(few) is None and power_law.check(few) is None
    assert power_law.describe(few, "multiply-adds")[0].startswith("no power law")
