"""The searcher optuna: each point is chosen by what is known of those before it.

Optuna's study is rebuilt for each proposal, from the records in the search's folder, with a seed that depends on
their number. So a search that was interrupted needs no other state to continue as if it had not been.

What the study learns of a trial:

    completed      its error after the last epoch; in search of a frontier, the logarithm of its cost, too
    stopped early  its errors so far, as a pruned trial; in search of a frontier, for which Optuna knows no pruned
                   trials, its last error, above what all epochs would have given
    failed         that it is infeasible
    pending        that it is running: TPE avoids its surroundings
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning.adaptive.encoding import encoding, parameters, suggested_point
from tuning.adaptive.observation import Adaptive, Observation
from tuning.config import SearchSettings
from tuning.space.points import Point

POPULATION = 20
"""Of each generation of NSGA-II: Optuna's 50 are more than most searches have trials."""


class OptunaSearcher(Adaptive):
    """Proposes points by TPE or NSGA-II, see `search.sampler`."""

    def __init__(self, settings: SearchSettings) -> None:
        self._search = settings.search
        self._encodings = {name: encoding(dimension) for name, dimension in settings.search.space.items()}

    def propose(self, known: Sequence[Observation], attempt: int) -> Point:
        """See :class:`Adaptive`."""
        seed = random.Random(f"{self._search.seed}/{len(known)}/{attempt}").getrandbits(32)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        objectives = 2 if self._search.seeks_frontier else 1
        study = optuna.create_study(directions=["minimize"] * objectives, sampler=self._sampler(seed))
        study.add_trials([self.as_trial(one) for one in known])
        return suggested_point(self._search.space, self._encodings, study.ask())

    def _sampler(self, seed: int) -> BaseSampler:
        if self._search.sampler == "nsga2":
            return _Generations(population_size=POPULATION, seed=seed)
        return TPESampler(seed=seed)

    def as_trial(self, one: Observation) -> FrozenTrial:
        """What the study learns of a trial, see above."""
        state, values, constraints = TrialState.RUNNING, None, None
        error = one.errors[max(one.errors)] if one.errors else math.inf
        frontier = self._search.seeks_frontier
        if one.status == "failed" or (one.status != "pending" and not one.errors):
            state, constraints = TrialState.PRUNED, {"trained": 1.0}
        elif one.status == "completed" or (one.status == "stopped early" and frontier):
            state, values = TrialState.COMPLETE, [error, math.log(max(one.cost, 1.0))] if frontier else [error]
        elif one.status == "stopped early":
            state = TrialState.PRUNED
        return create_trial(
            state=state,
            values=values,
            constraints=constraints,
            intermediate_values={} if frontier else dict(one.errors),
            **parameters(one.point, self._encodings),
        )


class _Generations(NSGAIISampler):
    """NSGA-II whose generations follow from the order of the trials, and not from notes in a study."""

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """Counts the trials before this one."""
        before = [one for one in _complete(study) if one.number < trial.number]
        return len(before) // POPULATION

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The trials of a generation."""
        return _complete(study)[generation * POPULATION : (generation + 1) * POPULATION]


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
