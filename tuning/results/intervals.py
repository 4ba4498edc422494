"""How far an error can be trusted that was measured on some images: intervals of 95 % confidence.

That of an error says what other images of the same kind could give for the same weights; that of a mean over seeds,
what other seeds of training could give on the same images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy import stats


class Interval(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float


def of_error(error: float, images: int) -> Interval:
    """Wilson's score interval of an error rate, from the number of images that it was measured on."""
    found = stats.binomtest(round(error * images), images).proportion_ci(0.95, method="wilson")
    return Interval(float(found.low), float(found.high))


def of_mean(values: Sequence[float]) -> Interval:
    """The interval of the mean that more values of the same kind would have, from at least two (Student's t)."""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return Interval(mean - half, mean + half)


def of_difference(one: float, other: float, images: int) -> Interval:
    """The interval of `one` − `other`, two error rates measured on as many images (Newcombe 1998, method 10).

    It takes the two for independent. On the same images, where networks fail alike, the true interval is narrower: an
    interval without 0 is on the safe side.
    """
    first, second = of_error(one, images), of_error(other, images)
    difference = one - other
    return Interval(
        difference - math.hypot(one - first.low, second.high - other),
        difference + math.hypot(first.high - one, other - second.low),
    )


def are_apart(one: float, other: float, images: int) -> bool:
    """Whether the images tell two error rates apart."""
    low, high = of_difference(one, other, images)
    return not low <= 0.0 <= high
