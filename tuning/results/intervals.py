"""How far an error can be trusted that was measured on some images: intervals of 95 % confidence.

They say what other images of the same kind could give for the same weights, not what other seeds of training would.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.stats import binomtest


class Interval(NamedTuple):
    """Both ends of an interval."""

    low: float
    high: float


def of_error(error: float, images: int) -> Interval:
    """Wilson's score interval of an error rate, from the number of images that it was measured on."""
    found = binomtest(round(error * images), images).proportion_ci(0.95, method="wilson")
    return Interval(float(found.low), float(found.high))


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
