"""How the error on the frontier falls with the cost of the network: error = factor · cost^−exponent.

Fitted as a straight line through the logarithms, by least squares (:func:`scipy.stats.linregress`). The intervals are
those of that line for normal residuals. The frontier is the best of several trials at each cost, on the same images:
points that were lucky are on it, so that the law is a little too good, and the exponent less certain than it looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from tuning.results.dominance import Point
from tuning.results.intervals import Interval

LEAST = 3
"""Points at different costs that a law is fitted to."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law."""

    factor: float
    exponent: float
    exponent_interval: Interval
    points: int
    log_cost_mean: float
    log_cost_squares: float
    """Sum of squared distances of the logarithms of the costs from their mean."""
    deviation: float
    """Standard deviation of the logarithms of errors around the line."""

    def error(self, cost: float) -> float:
        """The error that the law gives for a cost."""
        return float(self.factor * cost**-self.exponent)

    def interval(self, cost: float) -> Interval:
        """Where a further point of this cost is expected, with 95 % confidence."""
        distance = (math.log(cost) - self.log_cost_mean) ** 2 / self.log_cost_squares
        spread = math.exp(_quantile(self.points) * self.deviation * math.sqrt(1 + 1 / self.points + distance))
        return Interval(self.error(cost) / spread, self.error(cost) * spread)


@dataclass(frozen=True)
class Check:
    """A law beside a network that was kept back from the fit."""

    law: PowerLaw
    largest: float
    """The largest cost that the law was fitted to."""
    cost: float
    """Of the network that was kept back, at least twice as much."""
    error: float
    """That it has."""

    @property
    def holds(self) -> bool:
        """Whether the measured error lies where the law expects it."""
        low, high = self.law.interval(self.cost)
        return low <= self.error <= high


def fit(points: Sequence[Point]) -> PowerLaw | None:
    """The law through points (cost, error); None with fewer than LEAST costs. Points without error are left out: they
    have no logarithm."""
    kept = [(cost, error) for cost, error in points if error > 0]
    if len({cost for cost, _ in kept}) < LEAST:
        return None
    costs, errors = np.log(np.array(kept, dtype=float)).T
    line = stats.linregress(costs, errors)
    half = _quantile(len(kept)) * line.stderr
    residuals = errors - (line.intercept + line.slope * costs)
    return PowerLaw(
        factor=math.exp(line.intercept),
        exponent=float(-line.slope),
        exponent_interval=Interval(float(-line.slope - half), float(-line.slope + half)),
        points=len(kept),
        log_cost_mean=float(costs.mean()),
        log_cost_squares=float(((costs - costs.mean()) ** 2).sum()),
        deviation=float(np.sqrt((residuals**2).sum() / (len(kept) - 2))),
    )


def check(points: Sequence[Point]) -> Check | None:
    """The costliest point beside the law through those that cost at most half as much; None with too few of those."""
    *others, (cost, error) = sorted(points) or [(0.0, 0.0)]
    half = [point for point in others if point[0] <= cost / 2]
    law = fit(half)
    return Check(law, max(cost for cost, _ in half), cost, error) if law and error > 0 else None


def describe(points: Sequence[Point], what: str) -> list[str]:
    """The law through the frontier `points`, its check, and its prediction for twice the cost, in sentences.

    Args:
        what: the cost, such as multiply-adds.
    """
    law = fit(points)
    if law is None:
        return [f"no power law: fewer than {LEAST} points at different {what} are on the frontier"]
    low, high = law.exponent_interval
    lines = [
        f"power law through {law.points} points of the frontier: error = {law.factor:.3g} · "
        f"{what}^−{law.exponent:.3f}, exponent {low:.3f} to {high:.3f} with 95 % confidence"
    ]
    if checked := check(points):
        expected = checked.law.interval(checked.cost)
        verdict = "the law holds" if checked.holds else "the law does not hold"
        lines.append(
            f"check: from networks of at most {checked.largest:,.0f} {what}, the law predicts "
            f"{checked.law.error(checked.cost):.4f} ({expected.low:.3f} to {expected.high:.3f}) for "
            f"{checked.cost:,.0f}, where {checked.error:.4f} was measured: {verdict}"
        )
    else:
        lines.append(f"check: none, as it takes {LEAST} points with at most half of the largest network's {what}")
    twice = 2 * max(cost for cost, _ in points)
    expected = law.interval(twice)
    lines.append(
        f"prediction for {twice:,.0f} {what}, twice the largest: error {law.error(twice):.4f} "
        f"({expected.low:.3f} to {expected.high:.3f})"
    )
    return lines


def _quantile(points: int) -> float:
    """Of Student's distribution, for two parameters of a line."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, points - 2))
