"""One dimension of a search space: a setting, and the values that it may have.

    depth: [4, 6, 8]                                       a choice
    width: {log_integer: [8, 64]}                          whole numbers, each octave as likely as another
    optimizer.learning_rate: {log_uniform: [0.03, 1.0]}
    optimizer.momentum: {uniform: [0.8, 0.95], points: 4, when: {optimizer.name: sgd}}

`points` makes a range a list of values, as a grid needs it. With `when`, the dimension is there only where another one
has this value, or one of a list of values; elsewhere the setting keeps the value that all trials share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Positive, Section

Whole = tuple[int, int]
Real = tuple[float, float]

RANGES = ("uniform", "log_uniform", "integer", "log_integer")
KINDS = ("choice", *RANGES)
DIGITS = 4
"""Significant digits of a real value: more would say nothing, and names and tables would be full of them."""


class Dimension(Section):
    """The values that a setting may have: exactly one of `choice` and the ranges is set."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """One of these values."""
    uniform: Real | None = None
    """A number between two others."""
    log_uniform: Real | None = None
    """A number between two others above 0, its logarithm uniformly distributed."""
    integer: Whole | None = None
    """A whole number between two others, both included."""
    log_integer: Whole | None = None
    """A whole number between two others above 0, both included, its logarithm uniformly distributed."""
    points: Positive | None = None
    """Number of values at equal distances that stand for a range."""
    when: dict[str, tuple[Any, ...]] = Field(default={})
    """Names of other dimensions, and the values of each with which this dimension is there."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, content: Any) -> Any:
        if isinstance(content, list | tuple):
            return {"choice": content}
        return content if isinstance(content, dict) else {"choice": [content]}

    @field_validator("when", mode="before")
    @classmethod
    def _list_values(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            return when
        return {name: values if isinstance(values, list | tuple) else (values,) for name, values in when.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(given := [kind for kind in KINDS if getattr(self, kind) is not None]) != 1:
            raise ValueError(
                f"a dimension has one of {', '.join(KINDS[:-1])} and {KINDS[-1]}"
                + (f", not {' and '.join(given)}" if given else "")
            )
        if given[0] != "choice":
            low, high = getattr(self, given[0])
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{given[0]} must go from a number to a larger one, not from {low} to {high}")
            if given[0].startswith("log_") and low <= 0:
                raise ValueError(f"{given[0]} must begin above 0, not at {low}")
        elif self.points is not None:
            raise ValueError("points divide a range, and a choice has none")
        return self

    @property
    def range(self) -> tuple[float, float, bool, bool] | None:
        """Lowest and highest value, whether the scale is logarithmic, and whether values are whole; None for a
        choice."""
        for kind in RANGES:
            if (ends := getattr(self, kind)) is not None:
                return ends[0], ends[1], kind.startswith("log_"), kind.endswith("integer")
        return None

    def at(self, share: float) -> Any:
        """The value at a share, from 0 to 1, of the values' weight."""
        if self.choice is not None:
            return self.choice[min(len(self.choice) - 1, int(share * len(self.choice)))]
        if self.points is not None:
            return self.values()[min(self.points - 1, int(share * self.points))]
        assert self.range is not None
        low, high, logarithmic, whole = self.range
        if whole:  # each whole number gets the weight of the interval around it
            low, high = low - 0.5, high + 0.5
        return self.rounded(_between(low, high, share, logarithmic))

    def contains(self, value: Any) -> bool:
        """Whether the dimension may have this value."""
        if self.choice is not None or self.points is not None:
            return index_of(value, self.values()) is not None
        assert self.range is not None
        low, high, _, whole = self.range
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        return number and low <= value <= high

    def values(self) -> list[Any]:
        """All values, as a grid needs them.

        Raises:
            ValueError: they are not countable.
        """
        if self.choice is not None:
            return list(self.choice)
        assert self.range is not None
        low, high, logarithmic, whole = self.range
        if self.points is not None:
            shares = [index / max(1, self.points - 1) for index in range(self.points)]
            found = [self.rounded(_between(low, high, share, logarithmic)) for share in shares]
            return list(dict.fromkeys(found))
        if whole:
            return list(range(int(low), int(high) + 1))
        raise ValueError("a grid needs the number of its points")

    def rounded(self, value: float) -> float | int:
        """The value of a range that stands for this one: with DIGITS, or whole."""
        assert self.range is not None
        low, high, _, whole = self.range
        if whole:
            return int(min(high, max(low, round(value))))
        return min(high, max(low, float(f"{value:.{DIGITS}g}")))


def index_of(value: Any, values: Sequence[Any]) -> int | None:
    """Place of a value among others; None if it is not there. Unlike in Python, true is not 1."""
    kind = isinstance(value, bool)
    return next((place for place, one in enumerate(values) if one == value and isinstance(one, bool) == kind), None)


def _between(low: float, high: float, share: float, logarithmic: bool) -> float:
    if logarithmic:
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)
