"""Schedulers of a search side by side, on learning curves that were recorded once.

    python -m benchmarks.search curves.json
    python -m benchmarks.search --record SEARCH curves.json

The file has the errors of many networks after each epoch, all trained to the end. Each seed draws an order of them;
every scheduler gets the same order, the same number of trials at a time, and the same number of epochs in all. What it
has found are the networks that it has trained to the end: the hypervolume is the area that they dominate in the plane
of error and logarithm of multiply-adds, both scaled to those of all networks. The last line is JSON:

    wins_random, wins_asha     seeds in which pareto_halving has the larger hypervolume
    of                         seeds
    hypervolume                means over the seeds, by scheduler; that of all networks is 1

With --record, writes the file from a finished search (`search.scheduler: none`) in the folder SEARCH.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.result import TRAINING_ITERATION
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from tuning.pareto_halving import COST, ParetoHalving
from tuning.results import stored
from tuning.results.dominance import frontier

METRIC = "top1"
SEEDS, AT_A_TIME = 10, 4
FULL_LENGTH = 16
"""Trials of full length that the epochs of a search would be enough for."""
_CONTROLLER: Any = None  # these schedulers do not ask it


@dataclass(frozen=True)
class Curve:
    """A network that was trained to the end."""

    name: str
    multiply_adds: int
    errors: tuple[float, ...]
    """After each epoch, on images held out."""


def record(folder: Path) -> list[Curve]:
    """The curves of the trials of a search that were completed."""
    found = stored.read(folder)
    errors = {name: one.errors for name, one in found.records.items() if one.status == "completed"}
    return [
        Curve(row.name, row.multiply_adds, tuple(error for _, error in sorted(errors[row.name].items())))
        for row in found.rows
        if row.name in errors
    ]


def replay(curves: Sequence[Curve], scheduler: TrialScheduler, order: Sequence[int], budget: int) -> list[Curve]:
    """The networks that a search trains to the end within a budget of epochs."""
    waiting = list(order)
    complete: list[Curve] = []
    active: list[tuple[Curve, Trial, int]] = []
    while True:
        while len(active) < AT_A_TIME and waiting:
            curve = curves[waiting.pop(0)]
            trial = Trial(curve.name, trial_id=curve.name, stub=True)
            scheduler.on_trial_add(_CONTROLLER, trial)
            active.append((curve, trial, 0))
        if not active or budget == 0:
            return complete
        curve, trial, epoch = active.pop(0)
        epoch, budget = epoch + 1, budget - 1
        result = {
            "epoch": epoch,
            TRAINING_ITERATION: epoch,
            METRIC: 1 - curve.errors[epoch - 1],
            COST: float(curve.multiply_adds),
        }
        if epoch == len(curve.errors):
            scheduler.on_trial_complete(_CONTROLLER, trial, result)
            complete.append(curve)
        elif scheduler.on_trial_result(_CONTROLLER, trial, result) == TrialScheduler.CONTINUE:
            active.append((curve, trial, epoch))


def hypervolume(found: Sequence[Curve], curves: Sequence[Curve]) -> float:
    """The area that the networks `found` dominate, as a share of that of all `curves`."""
    costs = [math.log(one.multiply_adds) for one in curves]
    low, high = min(costs), max(costs)
    worst = max(one.errors[-1] for one in curves)

    def area(networks: Sequence[Curve]) -> float:
        points = [((math.log(one.multiply_adds) - low) / (high - low), one.errors[-1] / worst) for one in networks]
        best = sorted(point for point, kept in zip(points, frontier(points), strict=True) if kept)
        ends = [*(cost for cost, _ in best[1:]), 1.0][: len(best)]
        return sum((end - cost) * (1 - error) for (cost, error), end in zip(best, ends, strict=True))

    return area(found) / area(curves)


def compare(curves: Sequence[Curve], seeds: int = SEEDS) -> dict[str, Any]:
    """Hypervolumes of all schedulers for several orders of the networks."""
    epochs = len(curves[0].errors)
    schedulers: dict[str, Callable[[], TrialScheduler]] = {
        "pareto_halving": lambda: ParetoHalving(METRIC, first=1, factor=2, epochs=epochs),
        "random": FIFOScheduler,
        "asha": lambda: ASHAScheduler("epoch", METRIC, "max", max_t=epochs, grace_period=1, reduction_factor=2),
    }
    volumes: dict[str, list[float]] = {name: [] for name in schedulers}
    for seed in range(seeds):
        order = random.Random(seed).sample(range(len(curves)), len(curves))
        for name, build in schedulers.items():
            found = replay(curves, build(), order, FULL_LENGTH * epochs)
            volumes[name].append(hypervolume(found, curves))

    def wins(other: str) -> int:
        return sum(ours > theirs for ours, theirs in zip(volumes["pareto_halving"], volumes[other], strict=True))

    return {
        "wins_random": wins("random"),
        "wins_asha": wins("asha"),
        "of": seeds,
        "hypervolume": {name: round(statistics.mean(one), 3) for name, one in volumes.items()},
        "networks": len(curves),
        "epochs": FULL_LENGTH * epochs,
    }


def main() -> None:
    """Prints one line of JSON, or writes the file of curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", type=Path, help="file of recorded curves")
    parser.add_argument("--record", type=Path, metavar="SEARCH", help="write the file from this search")
    arguments = parser.parse_args()
    if arguments.record:
        lines = [json.dumps(asdict(curve)) for curve in record(arguments.record)]
        arguments.curves.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
        return
    content = json.loads(arguments.curves.read_text(encoding="utf-8"))
    print(json.dumps(compare([Curve(one["name"], one["multiply_adds"], tuple(one["errors"])) for one in content])))


if __name__ == "__main__":
    main()
