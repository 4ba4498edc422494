"""Records the trials of a search, and reports each of their events in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from data_prep.common import ray_internals
from data_prep.common.errors import UserError
from tuning import tracking
from tuning.search_folder import Record, SearchFolder


class TrialRecorder(tune.Callback):
    """Ray Tune calls these methods in the process of the search."""

    def __init__(self, folder: SearchFolder, metric: str, epochs: int, report_line: Callable[[str], None]) -> None:
        self._folder = folder
        self._metric = metric
        self._epochs = epochs
        self._report_line = report_line

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial has a process."""
        name = name_of(trial)
        record = self._folder.record(name)
        self._report_line(f"{name}: resumed after epoch {record.epochs}" if record.epochs else f"{name}: started")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """The trial finished an epoch; the scheduler has decided whether it continues."""
        name = name_of(trial)
        errors = {**self._folder.record(name).errors, int(result["epoch"]): 1 - float(result[self._metric])}
        self._folder.update(name, Record(errors=errors))
        tracking.note_best(self._folder)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ended by itself, or the scheduler ended it."""
        name = name_of(trial)
        record = self._folder.record(name)
        if record.epochs == self._epochs:
            self._folder.update(name, Record(status="completed", errors=record.errors))
            self._report_line(f"{name}: finished with error {record.error:.4f}")
        else:
            self._folder.update(name, Record(status="stopped early", errors=record.errors))
            self._report_line(f"{name}: stopped early at epoch {record.epochs} with error {record.error:.4f}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial failed; the others continue."""
        name, reason = name_of(trial), _reason(trial)
        self._folder.update(name, Record(status="failed", errors=self._folder.record(name).errors, reason=reason))
        self._report_line(f"{name}: failed: {reason}")


def name_of(trial: Trial) -> str:
    """The name of a trial, which is that of its run."""
    name: str = trial.config["name"]
    return name


def _reason(trial: Trial) -> str:
    """The error of a failed trial in one sentence."""
    error = ray_internals.error_of_trial(trial)
    if error is None:
        return "its process died"
    cause = getattr(error, "cause", error)
    return (
        str(cause) if isinstance(cause, UserError) else (str(error).strip().splitlines() or [type(error).__name__])[-1]
    )
