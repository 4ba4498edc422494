"""Which networks become finalists, and what is said of them."""

from __future__ import annotations

import pytest

from tuning import finals
from tuning.results import intervals
from tuning.results.frontier import Row
from tuning.search_folder import Record


def row(name: str, cost: int, error: float, status: str = "completed") -> Row:
    return Row(name, (8,), 1000, cost, error, 4, status, images=100)


def test_finalists_are_those_of_the_frontier_with_the_smallest_errors() -> None:
    rows = [
        row("a", 1, 0.5),
        row("b", 2, 0.4),
        row("worse", 3, 0.45),
        row("c", 4, 0.3),
        row("d", 5, 0.1, "stopped early"),
    ]
    assert [one.name for one in finals.chosen(rows, 2)] == ["c", "b"]
    assert [one.name for one in finals.chosen(rows, 9)] == ["c", "b", "a"]


def final(trial: str, seed: int, error: float, status: str = "completed", epochs: int = 2) -> Record:
    point = {finals.TRIAL: trial, finals.SEED: seed, finals.EPOCHS: epochs}
    return Record(status=status, errors={epochs: error}, point=point)  # type: ignore[arg-type]


def test_finalists_are_described_by_mean_and_both_intervals_the_best_first() -> None:
    records = {
        "a0": final("a", 0, 0.30),
        "a1": final("a", 1, 0.34),
        "a2": final("a", 2, 0.32),
        "b0": final("b", 0, 0.2),
        "b1": final("b", 1, 0.9, "failed"),
    }
    first, second = finals.describe(records, 1000)
    assert first.startswith("finalist b: error 0.2000 on 1,000 validation images after 2 epochs, mean of 1 seed (")
    assert "other seeds" not in first and "0.176 to 0.226 with other images" in first
    # Student's t with 2 degrees of freedom: 4.303 · 0.02 / √3 = 0.0497
    assert "mean of 3 seeds (0.270 to 0.370 with other seeds, 0.292 to 0.350 with other images)" in second


def test_the_interval_of_a_mean_holds_as_often_as_it_says() -> None:
    import numpy as np

    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 4))
    inside = [low <= 3.0 <= high for low, high in map(intervals.of_mean, draws.tolist())]
    assert sum(inside) / len(inside) == pytest.approx(0.95, abs=0.015)
