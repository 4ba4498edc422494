"""The dimensions of a search space as Optuna's distributions, and points as its parameters.

Optuna sees the values of a list as their indices: those of numbers in their order, so that it knows which are near to
each other. It sees ranges as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from tuning.space.dimension import Dimension, index_of
from tuning.space.points import Point, suggested


@dataclass(frozen=True)
class Encoding:
    """One dimension."""

    dimension: Dimension
    values: tuple[Any, ...] | None
    """Those of a list, in Optuna's order; None for a range."""
    distribution: BaseDistribution

    def encode(self, value: Any) -> float | int:
        """Optuna's value."""
        if self.values is None:
            number: float | int = value
            return number
        place = index_of(value, self.values)
        assert place is not None
        return place

    def suggest(self, name: str, trial: Trial) -> Any:
        """The value of the dimension that Optuna suggests."""
        found: Any
        if isinstance(self.distribution, CategoricalDistribution):
            found = trial.suggest_categorical(name, self.distribution.choices)
        elif isinstance(self.distribution, IntDistribution):
            found = trial.suggest_int(name, self.distribution.low, self.distribution.high, log=self.distribution.log)
        else:
            assert isinstance(self.distribution, FloatDistribution)
            found = trial.suggest_float(name, self.distribution.low, self.distribution.high, log=self.distribution.log)
        return self.dimension.rounded(found) if self.values is None else self.values[found]


def encoding(dimension: Dimension) -> Encoding:
    """How Optuna sees a dimension."""
    if dimension.range is not None and dimension.points is None:
        low, high, logarithmic, whole = dimension.range
        distribution: BaseDistribution = (
            IntDistribution(int(low), int(high), log=logarithmic)
            if whole
            else FloatDistribution(low, high, log=logarithmic)
        )
        return Encoding(dimension, None, distribution)
    values: list[Any] = []
    for value in dimension.values():
        if index_of(value, values) is None:
            values.append(value)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return Encoding(dimension, tuple(sorted(values)), IntDistribution(0, len(values) - 1))
    return Encoding(dimension, tuple(values), CategoricalDistribution(range(len(values))))


def parameters(point: Mapping[str, Any], encodings: Mapping[str, Encoding]) -> dict[str, Any]:
    """`params` and `distributions` of Optuna's trial for a point; dimensions without an encoding are left out."""
    names = [name for name in point if name in encodings]
    return {
        "params": {name: encodings[name].encode(point[name]) for name in names},
        "distributions": {name: encodings[name].distribution for name in names},
    }


def suggested_point(space: Mapping[str, Dimension], encodings: Mapping[str, Encoding], trial: Trial) -> Point:
    """The point that Optuna suggests."""
    return suggested(space, lambda name, dimension: encodings[name].suggest(name, trial))
