"""Which of several trials are better in error and cost together: both are better when smaller.

Non-dominated sorting ranks trials in fronts; within a front, those in a sparse part of it come first (crowding
distance). This is the ranking of NSGA-II (Deb et al. 2002).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]
"""Error and cost of a trial, or cost and error."""


def frontier(points: Sequence[Point]) -> list[bool]:
    """For each point, whether it is on the frontier: no other point is at least as good in both and better in one.
    Equal points are on it together."""
    return [front == 0 for front in fronts(points)]


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
