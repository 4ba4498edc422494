"""How much of the differences between trials each dimension of the space explains: Optuna's fANOVA.

fANOVA (Hutter et al. 2014) fits a random forest to the errors, and divides its variance among the dimensions. Trials
are compared after the same number of epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rich.table import Table

from data_prep.common.errors import count_of
from tuning.adaptive.observation import lies_in
from tuning.config import SearchSettings
from tuning.search_folder import Record

ENOUGH, EACH, FEWEST = 20, 5, 4
"""Trials that are needed for shares that mean something, in all and for each dimension; with fewer than the last
number nothing is computed."""


@dataclass(frozen=True)
class Importance:
    """The shares of the dimensions."""

    shares: dict[str, float]
    """By name, the largest first; their sum is 1."""
    epoch: int
    """After which the errors were measured."""
    trials: int
    """That have reached it."""
    conditional: tuple[str, ...]
    """Dimensions that some trials do not have: they have no share."""

    @property
    def few(self) -> bool:
        """Whether there are too few trials."""
        return self.trials < max(ENOUGH, EACH * len(self.shares))

    def describe(self) -> list[str]:
        """How the shares were computed, and what is wrong with them."""
        lines = [
            f"importance: share of the variance of the error after {count_of(self.epoch, 'epoch')} that a setting "
            f"explains by itself, from Optuna's fANOVA on {self.trials} trials, scaled to a sum of 1"
        ]
        if self.conditional:
            lines.append(f"without a share, as some trials do not have them: {', '.join(self.conditional)}")
        if self.few:
            needed = max(ENOUGH, EACH * len(self.shares))
            lines.append(f"warning: {self.trials} trials are too few for these shares, which need {needed} or more")
        return lines


def measure(settings: SearchSettings, records: Mapping[str, Record]) -> Importance | None:
    """The importance of each dimension for the error; None where trials are too few, or differ in no dimension.

    The errors are those after the last epoch that enough trials have reached, or most of them.
    """
    space = settings.search.space
    trials = [one for one in records.values() if one.errors and one.status != "pending" and lies_in(space, one)]
    counts = {epoch: sum(epoch in one.errors for one in trials) for one in trials for epoch in one.errors}
    if not counts:
        return None
    enough = max(ENOUGH, EACH * len(space))
    epoch = max(counts, key=lambda epoch: (min(counts[epoch], enough), epoch))
    trials = [one for one in trials if epoch in one.errors]
    everywhere = [name for name in space if all(name in one.coordinates for one in trials)]
    varied = [
        name for name in everywhere if any(one.coordinates[name] != trials[0].coordinates[name] for one in trials)
    ]
    if len(trials) < FEWEST or not varied or len({one.errors[epoch] for one in trials}) == 1:
        return None
    conditional = tuple(name for name in space if name not in everywhere)
    return Importance(_shares(settings, trials, varied, epoch), epoch, len(trials), conditional)


def _shares(settings: SearchSettings, trials: list[Record], names: list[str], epoch: int) -> dict[str, float]:
    import optuna  # slow to import
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    from tuning.adaptive.encoding import encoding, parameters

    encodings = {name: encoding(settings.search.space[name]) for name in names}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials(
        [optuna.create_trial(value=one.errors[epoch], **parameters(one.coordinates, encodings)) for one in trials]
    )
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=names)


def table(found: Importance) -> Table:
    """The shares for a terminal."""
    result = Table(title="importance")
    result.add_column("setting", overflow="fold")
    result.add_column("share", justify="right")
    for name, share in found.shares.items():
        result.add_row(name, f"{share:.2f}")
    return result
