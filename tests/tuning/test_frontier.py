"""The frontier among trials, and how it is shown."""

from __future__ import annotations

import csv

from tuning.results import dominance, frontier
from tuning.results.frontier import Row


def row(name: str, cost: int, error: float | None, status: str = "completed", reason: str = "") -> Row:
    return Row(name, (8, 16), parameters=1000, multiply_adds=cost, error=error, epochs=4, status=status, reason=reason)


def test_a_point_is_on_the_frontier_unless_another_is_as_good_in_both_and_better_in_one() -> None:
    points = [(1, 0.9), (2, 0.5), (2, 0.6), (3, 0.5), (4, 0.1), (9, 0.1), (5, 0.7)]
    assert dominance.frontier(points) == [True, True, False, False, True, False, False]


def test_equal_points_are_on_the_frontier_together() -> None:
    assert dominance.frontier([(1, 0.5), (1, 0.5)]) == [True, True]


def test_the_frontier_of_nothing_is_nothing() -> None:
    assert dominance.frontier([]) == []


def test_error_never_rises_along_the_frontier() -> None:
    points = [(float(7 * index % 31), float(11 * index % 29)) for index in range(60)]
    best = sorted(point for point, flag in zip(points, dominance.frontier(points), strict=True) if flag)
    errors = [error for _, error in best]
    assert errors == sorted(errors, reverse=True)
    assert all(any(other <= point for other in best) for point in points)


def test_only_completed_trials_are_on_the_frontier() -> None:
    rows = [row("good", 10, 0.2), row("stopped", 5, 0.1, "stopped early"), row("failed", 1, None, "failed", "it broke")]
    assert frontier.on_frontier(rows) == {"good"}


def test_the_table_shows_every_trial_with_its_status_and_reason() -> None:
    rows = [row("b", 2000, 0.25), row("a", 10, None, "failed", "a | b")]
    lines = frontier.markdown(rows).splitlines()
    assert lines[2] == "| a | 2 | 8-16 | 1,000 | 10 |  |  | 4 | failed: a / b |"
    assert lines[3] == "| b | 2 | 8-16 | 1,000 | 2,000 | 0.2500 * |  | 4 | completed |"
    assert frontier.table(rows, "title").row_count == 2


def test_the_csv_can_be_read_back() -> None:
    rows = [row("b", 2000, 0.25), row("a", 10, None, "failed", "why, oh")]
    read = list(csv.DictReader(frontier.comma_separated(rows).splitlines()))
    assert [(one["trial"], one["multiply-adds"], one["error"], one["frontier"]) for one in read] == [
        ("b", "2000", "0.25", "1"),
        ("a", "10", "", "0"),
    ]
    assert read[1]["reason"] == "why, oh"
