"""Many calls of one function, at once: on this machine's threads, or as Ray tasks on all nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Workers(Protocol):
    """Whoever does the calls. A call may be made twice (its process may have died), so it must be repeatable."""

    count: int
    """Calls that run at the same time."""

    def map(
        self, function: Callable[[Argument, Callable[[int], None]], Result], arguments: Iterable[Argument]
    ) -> Iterator[Result]:
        """Calls `function(argument, advance)` for each argument and yields the results as they come, in any order.

        `advance(n)` reports n more units (images) as done; the calls made so far reach the progress bar about every
        second. The first exception ends all calls and is raised here.
        """
