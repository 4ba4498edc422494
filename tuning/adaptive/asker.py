"""Asks a searcher for candidates, one after another, until enough points of the space are tried."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence

from data_prep.common.errors import UserError
from data_prep.common.registry import explain_faults
from tuning.adaptive.observation import Adaptive, Observation, lies_in, observe
from tuning.config import SearchSettings
from tuning.search_folder import Record
from tuning.space.candidate import Candidate, of_point
from tuning.space.constraints import is_budget
from tuning.space.points import Point, outside, suggested

ATTEMPTS, DRAWS = 50, 1000
"""Proposals of a searcher, and after them points drawn at random, that are looked at before a search gives up to find
one more that it can try."""


class Asker:
    """Finds the next candidate.

    Args:
        why_not: why a candidate cannot be tried; None if it can.
        warm: trials of earlier searches.
        besides: names of candidates that do not count among `search.trials`.
    """

    def __init__(
        self,
        settings: SearchSettings,
        searcher: Adaptive,
        why_not: Callable[[Candidate], str | None],
        warm: Sequence[Observation] = (),
        besides: Collection[str] = (),
    ) -> None:
        self._settings, self._searcher, self._why_not = settings, searcher, why_not
        self.warm, self.besides = list(warm), frozenset(besides)
        self.refused: dict[str, str] = {}
        """Names of points that cannot be tried → the reason."""

    def left(self, records: Mapping[str, Record]) -> int | None:
        """How many points of the space are still to be tried; None: without end."""
        if self._settings.search.trials is None:
            return None
        space = self._settings.search.space
        tried = [name for name, one in records.items() if name not in self.besides and lies_in(space, one)]
        return max(0, self._settings.search.trials - len(tried))

    def ask(self, records: Mapping[str, Record], costs: Mapping[str, float]) -> Candidate | None:
        """The next candidate; None if there are enough, or if no other point was found that can be tried.

        Args:
            records: of all trials so far, by name.
            costs: of those that have ended, by name.

        Raises:
            UserError: the searcher raises an exception, or proposes something else than a point of the space; or no
                point at all can be tried.
        """
        if self.left(records) == 0:
            return None
        search = self._settings.search
        known = [*self.warm, *observe(records, search.space, costs)]
        draw = random.Random(f"{search.seed}/{len(known)}")
        reasons: list[str] = []
        for attempt in range(ATTEMPTS + DRAWS):
            if attempt == ATTEMPTS and len(reasons) == attempt and len(set(reasons)) == 1 and not is_budget(reasons[0]):
                break  # every run would be refused
            if attempt < ATTEMPTS:
                point = self._proposed(known, attempt)
            else:
                point = suggested(search.space, lambda name, dimension: dimension.at(draw.random()))
            candidate = of_point(point, self._settings, "search.space")
            if candidate.name in records:
                continue
            if (why := self.refused.get(candidate.name) or self._why_not(candidate)) is None:
                return candidate
            self.refused[candidate.name] = why
            reasons.append(why)
        else:
            if records or not reasons:
                return None
        raise UserError(
            f"search.space: none of {len(set(self.refused))} points can be tried: {'; '.join(dict.fromkeys(reasons))}"
        )

    def _proposed(self, known: Sequence[Observation], attempt: int) -> Point:
        name = self._settings.search.searcher
        with explain_faults(f"search.searcher: {name}"):
            point = self._searcher.propose(known, attempt)
        if not isinstance(point, Mapping):
            raise UserError(f"search.searcher: {name} proposes {point!r}: propose points of search.space")
        if why := outside(self._settings.search.space, point):
            raise UserError(f"search.searcher: {name} proposes {point!r}, which is no point of search.space: {why}")
        return point
