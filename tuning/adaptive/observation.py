"""What a searcher that learns gets, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tuning.search_folder import Record
from tuning.space.dimension import Dimension
from tuning.space.points import Point, outside


@dataclass(frozen=True)
class Observation:
    """A trial, as a searcher sees it."""

    point: Mapping[str, Any]
    """Its point of the search space."""
    status: Literal["pending", "completed", "stopped early", "failed"] = "pending"
    """A pending one is training, or waits for it."""
    errors: Mapping[int, float] = field(default_factory=dict)
    """After each epoch so far, on images held out."""
    cost: float = 1.0
    """See `search.cost`."""


class Adaptive(ABC):
    """A searcher that is asked for one point at a time, and sees the results of earlier ones."""

    @abstractmethod
    def propose(self, known: Sequence[Observation], attempt: int) -> Point:
        """A point of the search space: a function of the arguments and the settings alone, so that a search that was
        interrupted continues as one that was not.

        Args:
            known: all trials so far whose points lie in the space, in the order in which they were proposed.
            attempt: how many proposals in a row could not be tried, as they had been tried before or are refused.
        """


def observe(
    records: Mapping[str, Record], space: Mapping[str, Dimension], costs: Mapping[str, float]
) -> list[Observation]:
    """The trials whose points lie in the space, in their order.

    Args:
        costs: of the trials that have ended, by name.
    """
    return [
        Observation(record.coordinates, record.status, record.errors, costs.get(name, 1.0))
        for name, record in records.items()
        if lies_in(space, record)
    ]


def lies_in(space: Mapping[str, Dimension], record: Record) -> bool:
    """Whether a trial was made of a point of this space."""
    return outside(space, record.coordinates) is None
