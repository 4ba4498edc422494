"""Dimensions of a search space: their values, ranges and conditions, and the points that they make."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from tuning.space.dimension import Dimension
from tuning.space.points import all_points, flatten, outside, suggested


def dimension(content: Any) -> Dimension:
    return Dimension.model_validate(content)


def space(**content: Any) -> dict[str, Dimension]:
    return {name: dimension(one) for name, one in content.items()}


def test_a_list_is_a_choice_and_a_value_is_a_constant() -> None:
    assert dimension([4, "a", [1, 2]]).values() == [4, "a", [1, 2]]
    assert dimension(0.5).values() == [0.5]
    assert dimension({"choice": [True, False]}).values() == [True, False]


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ({"integer": [3, 6]}, [3, 4, 5, 6]),
        ({"integer": [0, 100], "points": 3}, [0, 50, 100]),
        ({"log_integer": [8, 64], "points": 4}, [8, 16, 32, 64]),
        ({"log_integer": [1, 3], "points": 9}, [1, 2, 3]),  # each once
        ({"uniform": [0.0, 1.0], "points": 3}, [0.0, 0.5, 1.0]),
        ({"log_uniform": [0.001, 0.1], "points": 3}, [0.001, 0.01, 0.1]),
    ],
)
def test_ranges_become_lists_of_values(content: dict[str, Any], values: list[Any]) -> None:
    assert dimension(content).values() == values


@pytest.mark.parametrize(
    ("content", "low", "high", "middle"),
    [
        ({"uniform": [2.0, 4.0]}, 2.0, 4.0, 3.0),
        ({"log_uniform": [0.01, 1.0]}, 0.01, 1.0, 0.1),
        ({"integer": [1, 9]}, 1, 9, 5),
        ({"log_integer": [4, 64]}, 4, 64, 16),
    ],
)
def test_half_of_the_draws_lie_below_the_middle_of_the_scale(
    content: dict[str, Any], low: float, high: float, middle: float
) -> None:
    draw = random.Random(1)
    drawn = [dimension(content).at(draw.random()) for _ in range(4000)]
    assert low <= min(drawn) and max(drawn) <= high
    below = sum(one < middle for one in drawn) + 0.5 * sum(one == middle for one in drawn)
    assert below / 4000 == pytest.approx(0.5, abs=0.04)
    assert dimension(content).at(0.0) == low and dimension(content).at(math.nextafter(1.0, 0.0)) == high


def test_whole_numbers_and_choices_are_drawn_equally_often() -> None:
    draw = random.Random(1)
    for content, values in (({"integer": [1, 4]}, 4), (["a", "b", "c"], 3), ({"uniform": [0, 1], "points": 5}, 5)):
        counts = Counter(str(dimension(content).at(draw.random())) for _ in range(4000))
        assert len(counts) == values
        assert all(count * values / 4000 == pytest.approx(1, abs=0.15) for count in counts.values())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "one of choice, uniform"),
        ({"uniform": [0, 1], "integer": [0, 1]}, "not uniform and integer"),
        ({"uniform": [1, 0]}, "to a larger one"),
        ({"uniform": [0, math.inf]}, "to a larger one"),
        ({"log_uniform": [0, 1]}, "above 0"),
        ({"log_integer": [0, 8]}, "above 0"),
        ({"choice": []}, "at least 1"),
        ({"choice": [1], "points": 2}, "a choice has none"),
        ({"uniform": [0, 1], "steps": 2}, "steps"),
        ({"integer": [0.5, 2]}, "integer"),
    ],
)
def test_what_is_no_dimension_is_refused(content: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        dimension(content)


CONDITIONAL = {
    "rate": {"log_uniform": [0.1, 1.0], "points": 2, "when": {"kind": ["sgd"]}},
    "kind": ["sgd", "adamw"],
    "nesterov": {"choice": [True, False], "when": {"rate": [1.0]}},
}


def test_a_grid_has_every_point_once_and_conditions_hold() -> None:
    points = list(all_points(space(**CONDITIONAL)))
    assert points == [
        {"rate": 0.1, "kind": "sgd"},
        {"rate": 1.0, "kind": "sgd", "nesterov": True},
        {"rate": 1.0, "kind": "sgd", "nesterov": False},
        {"kind": "adamw"},
    ]
    free = space(depth=[1, 2], width={"integer": [3, 5]})
    assert [tuple(point.values()) for point in all_points(free)] == list(itertools.product([1, 2], [3, 4, 5]))


def test_a_drawn_point_obeys_the_conditions_too() -> None:
    draw = random.Random(2)
    for _ in range(200):
        point = suggested(space(**CONDITIONAL), lambda name, one: one.at(draw.random()))
        assert ("rate" in point) == (point["kind"] == "sgd")
        assert ("nesterov" in point) == (point.get("rate") == 1.0)


@pytest.mark.parametrize("value", [True, "sgd", 3])
def test_a_condition_may_name_one_value(value: Any) -> None:
    one = space(a={"choice": [1, 2], "when": {"b": value}}, b=[value, None])
    assert [dict(point) for point in all_points(one)] == [{"a": 1, "b": value}, {"a": 2, "b": value}, {"b": None}]


@pytest.mark.parametrize(
    ("point", "why"),
    [
        ({"kind": "adamw"}, None),
        ({"kind": "sgd", "rate": 0.1}, None),
        ({"kind": "sgd"}, "rate is missing"),
        ({"kind": "adamw", "rate": 0.1}, "rate is not there"),
        ({"kind": "sgd", "rate": 0.2}, "rate is never 0.2"),
        ({"kind": "adamw", "depth": 3}, "depth is no dimension"),
        ({"kind": "sgd", "rate": 1.0, "nesterov": 1}, "nesterov is never 1"),
    ],
)
def test_a_point_lies_in_the_space_or_says_why_not(point: dict[str, Any], why: str | None) -> None:
    found = outside(space(**CONDITIONAL), point)
    assert found is None if why is None else found is not None and found.startswith(why)


@pytest.mark.parametrize(
    ("content", "inside", "not_inside"),
    [
        ({"uniform": [0, 1]}, [0, 0.3, 1], [-0.1, 1.1, True, "x", None]),
        ({"log_integer": [1, 8]}, [1, 8], [0, 9, 2.5, True]),
        ([True, 3], [True, 3, 3.0], [1, False]),
    ],
)
def test_a_dimension_knows_its_values(content: Any, inside: list[Any], not_inside: list[Any]) -> None:
    one = dimension(content)
    assert all(one.contains(value) for value in inside) and not any(one.contains(value) for value in not_inside)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a": {"choice": [1], "when": {"b": [1]}}}, "b, which is no dimension"),
        ({"a": {"choice": [1], "when": {"b": [3]}}, "b": [1, 2]}, "names 3, which b never is"),
        ({"a": {"choice": [1], "when": {"b": [1]}}, "b": {"choice": [1], "when": {"a": [1]}}}, "circle"),
        ({"a": {"uniform": [0, 1]}}, "a: a grid needs"),
    ],
)
def test_what_makes_no_space_is_named(content: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(all_points(space(**content)))


def test_sections_may_be_nested() -> None:
    nested = {"depth": [1], "optimizer": {"learning_rate": {"log_uniform": [0.1, 1]}, "momentum": 0.9}}
    assert flatten(nested) == {
        "depth": [1],
        "optimizer.learning_rate": {"log_uniform": [0.1, 1]},
        "optimizer.momentum": 0.9,
    }
