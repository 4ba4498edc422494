"""Successive halving by error and cost together, so that cheap networks are not stopped for what they cost less.

At a rung (an epoch), the trials that have reached it are ranked by :mod:`tuning.results.dominance`, in asynchronous
successive halving as by Schmucker et al., "Multi-objective asynchronous successive halving" (2021).
"""

from __future__ import annotations

import math
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuning.results.dominance import Point, ranking

COST = "cost"
"""Name of a trial's cost in its results."""


def rungs(first: int, factor: float, epochs: int) -> list[int]:
    """Epochs at which trials are compared: `first`, and its multiples by powers of `factor`, below `epochs`."""
    found = []
    rung = float(first)
    while round(rung) < epochs:
        found.append(round(rung))
        rung *= factor
    return sorted(set(found))


class ParetoHalving(FIFOScheduler):
    """At each rung, a trial continues if it is among the best 1/`factor` (rounded up) of those that have reached the
    rung so far, in the order of :func:`ranking`; the first one always does.

    Args:
        metric: in a result, the accuracy; its cost is there as COST.
        first: epoch of the first rung.
        factor: above 1.
        epochs: of a trial that is not stopped.
    """

    def __init__(self, metric: str, first: int, factor: float, epochs: int) -> None:
        super().__init__()
        self._metric = metric
        self._factor = factor
        self._reached: dict[int, dict[str, Point]] = {rung: {} for rung in rungs(first, factor, epochs)}

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Decides after an epoch."""
        reached = self._reached.get(int(result["epoch"]))
        if reached is None:
            return TrialScheduler.CONTINUE
        reached[trial.trial_id] = (1.0 - float(result[self._metric]), float(result[COST]))
        best = ranking(list(reached.values()))[: math.ceil(len(reached) / self._factor)]
        kept = {list(reached)[index] for index in best}
        return TrialScheduler.CONTINUE if trial.trial_id in kept else TrialScheduler.STOP

    def debug_string(self) -> str:
        """How many trials have reached each rung."""
        counts = ", ".join(f"epoch {rung}: {len(reached)}" for rung, reached in self._reached.items())
        return f"ParetoHalving, trials that have reached {counts}"
