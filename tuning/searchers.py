"""Searchers by name: which points of the search space are tried, and in which order.

To add one, write a function that yields candidates from a search's settings, and register it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

from data_prep.common.errors import UserError, count_of
from data_prep.common.registry import Registry, explain_faults
from data_prep.format.manifest import Manifest
from tuning import search_folder
from tuning.config import SearchSettings
from tuning.space import constraints
from tuning.space.candidate import Candidate, of_point, trial_settings
from tuning.space.points import all_points, suggested

DRAWS = 1000
"""Points of a searcher without end that are looked at before a search gives up to find one more that it can try."""


def grid(settings: SearchSettings) -> list[Candidate]:
    """Every point of the space, in order; drawn without repetition by `search.seed` where `search.trials` takes only
    some of them."""
    points = list(all_points(settings.search.space)) if settings.search.space else []
    if settings.search.trials is not None:
        random.Random(settings.search.seed).shuffle(points)
    return [of_point(point, settings, "search.space") for point in points]


def random_points(settings: SearchSettings) -> Iterator[Candidate]:
    """Points drawn at random, decided by `search.seed`, without end."""
    draw = random.Random(settings.search.seed)
    while True:
        point = suggested(settings.search.space, lambda name, dimension: dimension.at(draw.random()))
        yield of_point(point, settings, "search.space")


SEARCHERS: Registry[Callable[[SearchSettings], Iterable[Candidate]]] = Registry("search.searcher")
"""Searchers by name: settings → candidates, in the order in which they are tried, possibly without end."""
SEARCHERS.register("grid", grid)
SEARCHERS.register("random", random_points)


@dataclass(frozen=True)
class Choice:
    """The candidates of a search, and what was left out."""

    candidates: list[Candidate]
    left_out: Counter[str] = field(default_factory=Counter)
    """How many points were left out, by the reason."""

    def __str__(self) -> str:
        out = "; ".join(
            f"{count} {'was' if count == 1 else 'were'} left out: {why}" for why, count in self.left_out.items()
        )
        return count_of(len(self.candidates), "point") + (f" ({out})" if out else "")


def choose(settings: SearchSettings, data: Manifest) -> Choice:
    """The networks that a search tries, each once: those of its searcher, as many as `search.trials`, that meet
    `search.constraints`, then those of `search.candidates`.

    Raises:
        UserError: no point meets the constraints, or one of `search.candidates` does not, or sets what trials must
            share; or the registered searcher raises an exception, or yields something else.
    """
    chosen: dict[str, Candidate] = {}
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    wanted = settings.search.trials
    misses = 0
    proposals = _proposals(settings)
    for candidate in proposals:
        if len(chosen) == wanted or (misses > DRAWS and not isinstance(proposals, Collection)):
            break
        misses += 1
        if candidate.name in seen:
            continue
        seen.add(candidate.name)
        if why := _why_not(candidate, settings, data):
            left_out[why] += 1
        else:
            chosen[candidate.name] = candidate
            misses = 0
    if left_out and not chosen:
        raise UserError(f"search.space: none of {len(seen)} points can be tried: {'; '.join(left_out)}")
    for point in settings.search.candidates:
        candidate = of_point(point, settings, "search.candidates")
        if why := _why_not(candidate, settings, data):
            raise UserError(f"search.candidates: {candidate.name}: {why}")
        chosen.setdefault(candidate.name, candidate)
    return Choice(list(chosen.values()), left_out)


def _proposals(settings: SearchSettings) -> Iterable[Candidate]:
    """What the searcher proposes, its errors explained: all at once, or one after another, possibly without end."""
    name = settings.search.searcher
    with explain_faults(f"search.searcher: {name}"):
        proposals = SEARCHERS.find(name)(settings)
        one_by_one = iter(proposals)
    checked = _checked(one_by_one, name)
    return list(checked) if isinstance(proposals, Collection) else checked


def _checked(proposals: Iterator[Candidate], name: str) -> Iterator[Candidate]:
    while True:
        with explain_faults(f"search.searcher: {name}"):
            try:
                candidate = next(proposals)
            except StopIteration:
                return
        if not isinstance(candidate, Candidate):
            raise UserError(f"search.searcher: {name} yields {candidate!r}: yield Candidates")
        yield candidate


def _why_not(candidate: Candidate, settings: SearchSettings, data: Manifest) -> str | None:
    """Why a candidate cannot be tried; None if it can."""
    try:
        run = trial_settings(settings, candidate, search_folder.path_of(settings), "")
        return constraints.violated(settings.search.constraints, run, data)
    except UserError as error:
        return str(error).removeprefix(f"trial {candidate.name}: ")
