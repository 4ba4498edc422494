"""Successive halving by error and cost together, so that cheap networks are not stopped for what they cost less.

At a rung (an epoch), the trials that have reached it are ranked by two numbers, both better when smaller: error and
cost. Non-dominated sorting ranks them in fronts; within a front, those in a sparse part of it come first (crowding
distance). This is the ranking of NSGA-II (Deb et al. 2002), in asynchronous successive halving as by Schmucker et al.,
"Multi-objective asynchronous successive halving" (2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

COST = "cost"
"""Name of a trial's cost in its results."""

Point = tuple[float, float]
"""Error and cost of a trial."""


def rungs(first: int, factor: float, epochs: int) -> list[int]:
    """Epochs at which trials are compared: `first`, and its multiples by powers of `factor`, below `epochs`."""
    found = []
    rung = float(first)
    while round(rung) < epochs:
        found.append(round(rung))
        rung *= factor
    return sorted(set(found))


def fronts(points: Sequence[Point]) -> list[int]:
    """For each point, the number of its front, counted from 0: no point of a front is dominated by another of it, and
    each is dominated by one of the front before. Equal points are in the same front."""
    values = np.asarray(points, dtype=float).reshape(-1, 2)
    no_worse = (values[:, None] <= values[None]).all(2)
    dominates = no_worse & (values[:, None] < values[None]).any(2)
    front = np.full(len(values), -1)
    number = 0
    while (left := front < 0).any():
        front[left & ~(dominates & left[:, None]).any(0)] = number
        number += 1
    return [int(one) for one in front]


def crowding_distances(points: Sequence[Point]) -> list[float]:
    """For each point of a front, how far apart its neighbors are: the sum over error and cost of their distance, as a
    share of the front's range. Infinite at the ends of the front."""
    values = np.asarray(points, dtype=float).reshape(-1, 2)
    distances = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        distances[order[[0, -1]]] = math.inf
        if spread > 0:
            distances[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return [float(one) for one in distances]


def ranking(points: Sequence[Point]) -> list[int]:
    """Indices of `points`, the best one first: by front, then by crowding distance, then by error.

    Distances in cost are those of its logarithm: networks differ by factors.
    """
    front = fronts(points)
    distance = [0.0] * len(points)
    for number in set(front):
        members = [index for index, one in enumerate(front) if one == number]
        scaled = [(points[index][0], math.log(max(points[index][1], 1.0))) for index in members]
        for index, one in zip(members, crowding_distances(scaled), strict=True):
            distance[index] = one
    return sorted(range(len(points)), key=lambda index: (front[index], -distance[index], points[index][0], index))


class ParetoHalving(FIFOScheduler):
    """At each rung, a trial continues if it is among the best 1/`factor` (rounded up) of those that have reached the
    rung so far, in the order of :func:`ranking`; the first one always does.

    Args:
        metric: in a result, the accuracy; its cost is there as COST.
        first: epoch of the first rung.
        factor: above 1.
        epochs: of a trial that is not stopped.
    """

    def __init__(self, metric: str, first: int, factor: float, epochs: int) -> None:
        super().__init__()
        self._metric = metric
        self._factor = factor
        self._reached: dict[int, dict[str, Point]] = {rung: {} for rung in rungs(first, factor, epochs)}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides after an epoch."""
        reached = self._reached.get(int(result["epoch"]))
        if reached is None:
            return TrialScheduler.CONTINUE
        reached[trial.trial_id] = (1.0 - float(result[self._metric]), float(result[COST]))
        best = ranking(list(reached.values()))[: math.ceil(len(reached) / self._factor)]
        kept = {list(reached)[index] for index in best}
        return TrialScheduler.CONTINUE if trial.trial_id in kept else TrialScheduler.STOP

    def debug_string(self) -> str:
        """How many trials have reached each rung."""
        counts = ", ".join(f"epoch {rung}: {len(reached)}" for rung, reached in self._reached.items())
        return f"ParetoHalving, trials that have reached {counts}"
