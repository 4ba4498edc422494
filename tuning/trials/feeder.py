"""Gives Ray Tune the trials of a searcher that learns, one after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.search import Searcher

from data_prep.common.errors import UserError

Configuration = dict[str, Any]
"""What Tune gives to the process of a trial, see :func:`tuning.trials.trial.configuration`."""


class Feeder(Searcher):
    """Ray Tune calls these methods in the process of the search.

    Args:
        first: trials that wait already.
        more: finds a further one; None if there is none.
        last: trials that wait until there is none.
        room: how many may train at the same time. A trial is asked for when there is room for it and not before: all
            results so far are known by then.
    """

    def __init__(
        self,
        first: Iterable[Configuration],
        more: Callable[[], Configuration | None],
        last: Iterable[Configuration],
        room: Callable[[], int],
    ) -> None:
        super().__init__()
        self._first, self._more, self._last, self._room = deque(first), more, deque(last), room
        self._live: set[str] = set()
        self.exhausted = False
        """Whether every trial was given."""
        self.fault: UserError | None = None
        """Why no further trial could be found; None while nothing is wrong."""

    def suggest(self, trial_id: str) -> Configuration | str | None:
        """The next trial; None while there is no room for it."""
        if len(self._live) >= max(1, self._room()):
            return None
        found = self._next()
        if found is None:
            self.exhausted = True
            return self.FINISHED
        self._live.add(trial_id)
        return found

    def _next(self) -> Configuration | None:
        if self._first:
            return self._first.popleft()
        if self.fault is None:
            try:
                found = self._more()
            except UserError as error:  # trials that are training are to end
                self.fault = error
            else:
                if found is not None:
                    return found
        return self._last.popleft() if self._last and self.fault is None else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The trial has ended: its record holds how."""
        self._live.discard(trial_id)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its configuration to a file, which is never read."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Saves nothing: what a search knows is in its own records."""
