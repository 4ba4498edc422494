"""Searchers by name: which points of the search space are tried, and in which order.

To add one, write a function that yields candidates from a search's settings, or builds a searcher that learns from the
results (see :class:`tuning.adaptive.observation.Adaptive`), and register it.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_prep.common.errors import UserError, count_of
from data_prep.common.registry import Registry, explain_faults
from data_prep.format.manifest import Manifest
from pipeline.launch import launcher
from tuning import search_folder
from tuning.adaptive import warm_start
from tuning.adaptive.asker import Asker
from tuning.adaptive.observation import Adaptive
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


def optuna(settings: SearchSettings) -> Adaptive:
    """Points that Optuna proposes, see :mod:`tuning.adaptive.optuna_searcher`."""
    from tuning.adaptive.optuna_searcher import OptunaSearcher  # slow to import

    return OptunaSearcher(settings)


SEARCHERS: Registry[Callable[[SearchSettings], Iterable[Candidate] | Adaptive]] = Registry("search.searcher")
"""Searchers by name: settings → candidates, in the order in which they are tried, possibly without end; or a searcher
that learns."""
SEARCHERS.register("grid", grid)
SEARCHERS.register("random", random_points)
SEARCHERS.register("optuna", optuna)


@dataclass(frozen=True)
class Choice:
    """The candidates of a search, and what was left out."""

    candidates: list[Candidate]
    """Those that are known before the search begins."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many points were left out, by the reason."""
    asker: Asker | None = None
    """Finds further candidates, after the initial points and before `search.candidates`, where the searcher learns."""

    def __str__(self) -> str:
        out = "; ".join(
            f"{count} {'was' if count == 1 else 'were'} left out: {why}" for why, count in self.left_out.items()
        )
        return count_of(len(self.candidates), "point") + (f" ({out})" if out else "")


def choose(settings: SearchSettings, data: Manifest, start_digest: str | None = None) -> Choice:
    """The networks that a search tries, each once: `search.initial_points` and those of its searcher, as many as
    `search.trials`, that meet `search.constraints`, then those of `search.candidates`.

    Raises:
        UserError: no point meets the constraints, or one that is given does not, or sets what trials must share; or the
            registered searcher raises an exception, or yields something else; or `search.warm_start` names no search
            that can be compared.
    """
    given = _given(settings.search.initial_points, "search.initial_points", settings, data)
    besides = _given(settings.search.candidates, "search.candidates", settings, data)
    with explain_faults(f"search.searcher: {settings.search.searcher}"):
        searcher = SEARCHERS.find(settings.search.searcher)(settings)
    if isinstance(searcher, Adaptive):
        why_not = functools.partial(_why_not, settings=settings, data=data, of_run=True)
        warm = warm_start.known_trials(settings, data, start_digest)
        asker = Asker(settings, searcher, why_not, warm, besides.keys() - given.keys())
        return Choice(list({**given, **besides}.values()), asker=asker)
    drawn, left_out = _drawn(given, searcher, settings, data)
    return Choice(list({**drawn, **besides}.values()), left_out)


def may_continue(settings: SearchSettings, data: Manifest) -> Callable[[Candidate], bool]:
    """Whether a trial that was begun under other settings of the search may continue under these."""
    return lambda candidate: _why_not(candidate, settings, data) is None


def _given(
    points: Iterable[Mapping[str, Any]], where: str, settings: SearchSettings, data: Manifest
) -> dict[str, Candidate]:
    """The candidates of points that the settings name, by their names."""
    found: dict[str, Candidate] = {}
    for point in points:
        candidate = of_point(point, settings, where)
        if why := _why_not(candidate, settings, data):
            raise UserError(f"{where}: {candidate.name}: {why}")
        found.setdefault(candidate.name, candidate)
    return found


def _drawn(
    given: Mapping[str, Candidate], searcher: Iterable[Candidate], settings: SearchSettings, data: Manifest
) -> tuple[dict[str, Candidate], Counter[str]]:
    """The given points and those of a searcher that does not learn; and how many were left out, by the reason."""
    chosen = dict(given)
    left_out: Counter[str] = Counter()
    seen = set(given)
    wanted = settings.search.trials
    misses = 0
    proposals = _proposals(searcher, settings)
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
    return chosen, left_out


def _proposals(proposals: Iterable[Candidate], settings: SearchSettings) -> Iterable[Candidate]:
    """What the searcher proposes, its errors explained: all at once, or one after another, possibly without end."""
    name = settings.search.searcher
    with explain_faults(f"search.searcher: {name}"):
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


def _why_not(candidate: Candidate, settings: SearchSettings, data: Manifest, of_run: bool = False) -> str | None:
    """Why a candidate cannot be tried; None if it can.

    Args:
        of_run: checks its run, too, which a search otherwise does with all candidates before it begins.
    """
    try:
        run = trial_settings(settings, candidate, search_folder.path_of(settings), "")
        if of_run:
            launcher.check(run, data)
        return constraints.violated(settings.search.constraints, run, data)
    except UserError as error:
        return str(error).removeprefix(f"trial {candidate.name}: ")
