"""The points of a search space: all of a grid, or one after another as something suggests their values.

point   name of a dimension → value; dimensions whose `when` is not met are missing
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from tuning.space.dimension import Dimension

Point = dict[str, Any]
VARIED = ("model.", "optimizer.", "training.", "data.image_size")
"""What may differ between trials besides the widths: fields of these sections, and the size of images."""
SECTIONS = tuple(name.partition(".")[0] for name in VARIED)
Suggest = Callable[[str, Dimension], Any]
"""Returns a value of the dimension of this name."""


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Dimensions by their dotted names: ``optimizer: {learning_rate: …}`` is ``optimizer.learning_rate: …``."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if key in SECTIONS and isinstance(value, Mapping):
            found |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            found[key] = value
    return found


def in_order(space: Mapping[str, Dimension]) -> list[str]:
    """Names of the dimensions, each after those that decide whether it is there, otherwise as they were given.

    Raises:
        ValueError: a condition names no dimension, or a value that it never has, or conditions form a circle.
    """
    for name, dimension in space.items():
        for other, values in dimension.when.items():
            if other not in space:
                raise ValueError(f"{name}: when names {other}, which is no dimension of the space")
            if (choice := space[other].choice) is not None and (strange := [v for v in values if v not in choice]):
                raise ValueError(f"{name}: when names {strange[0]!r}, which {other} never is")
    try:
        return list(TopologicalSorter({name: list(one.when) for name, one in space.items()}).static_order())
    except CycleError as error:
        raise ValueError(f"conditions form a circle: {' → '.join(error.args[1])}") from None


def suggested(space: Mapping[str, Dimension], suggest: Suggest) -> Point:
    """One point, its values suggested one after another."""
    point: Point = {}
    for name in in_order(space):
        if is_there(space[name], point):
            point[name] = suggest(name, space[name])
    return {name: point[name] for name in space if name in point}


def outside(space: Mapping[str, Dimension], point: Mapping[str, Any]) -> str | None:
    """Why a point does not lie in a space; None if it does."""
    if strange := [name for name in point if name not in space]:
        return f"{strange[0]} is no dimension of it"
    for name, dimension in space.items():
        there = is_there(dimension, point)
        if there != (name in point):
            return f"{name} is missing" if there else f"{name} is not there, by its when"
        if there and not dimension.contains(point[name]):
            return f"{name} is never {point[name]!r}"
    return None


def all_points(space: Mapping[str, Dimension]) -> Iterator[Point]:
    """Every point of a space of countable dimensions; the last dimension changes fastest.

    Raises:
        ValueError: the values of a dimension are not countable.
    """
    for name, dimension in space.items():
        try:
            dimension.values()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    names = in_order(space)

    def extended(point: Point, left: list[str]) -> Iterator[Point]:
        if not left:
            yield {name: point[name] for name in space if name in point}
        elif not is_there(space[left[0]], point):
            yield from extended(point, left[1:])
        else:
            for value in space[left[0]].values():
                yield from extended({**point, left[0]: value}, left[1:])

    yield from extended({}, names)


def is_there(dimension: Dimension, point: Mapping[str, Any]) -> bool:
    """Whether a point has this dimension, by its `when`."""
    return all(other in point and point[other] in values for other, values in dimension.when.items())
