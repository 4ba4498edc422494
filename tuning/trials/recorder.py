"""Records the trials of a search, and reports each of their events in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from data_prep.common import ray_internals
from tuning import tracking
from tuning.config import SearchSettings
from tuning.schedulers import metric as metric_of
from tuning.search_folder import SearchFolder
from tuning.trials import failures


class TrialRecorder(tune.Callback):
    """Ray Tune calls these methods in the process of the search.

    A trial whose process or node was lost stays pending, until that has happened `cluster.max_failures` times.

    Args:
        metric: the accuracy that counts; by default the one that decides in the search.
        epochs: of a complete trial; by default those of the search.
    """

    shared_failure: str | None = None
    """Why every further trial would fail, too; None while nothing says so."""

    def __init__(
        self,
        folder: SearchFolder,
        settings: SearchSettings,
        report_line: Callable[[str], None],
        metric: str | None = None,
        epochs: int | None = None,
    ) -> None:
        self._metric, self._epochs = metric or metric_of(settings), epochs or settings.train.training.epochs
        self._folder = folder
        self._settings = settings
        self._report_line = report_line
        self._reasons: list[str] = []

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
        record = self._folder.record(name)
        errors = {**record.errors, int(result["epoch"]): 1 - float(result[self._metric])}
        self._folder.update(name, record.model_copy(update={"errors": errors}))
        tracking.note_best(self._folder)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial ended by itself, or the scheduler ended it."""
        name = name_of(trial)
        record = self._folder.record(name)
        if self.shared_failure is not None:
            return  # the search ends, and the trial with it
        if record.epochs == self._epochs:
            self._folder.update(name, record.model_copy(update={"status": "completed"}))
            self._report_line(f"{name}: finished with error {record.error:.4f}")
        else:
            self._folder.update(name, record.model_copy(update={"status": "stopped early"}))
            self._report_line(f"{name}: stopped early at epoch {record.epochs} with error {record.error:.4f}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The trial failed; the others continue, unless they would fail, too."""
        if self.shared_failure is not None:
            return
        name, failure = name_of(trial), failures.of_trial(ray_internals.error_of_trial(trial))
        record = self._folder.record(name)
        allowed = self._settings.train.cluster.max_failures
        if failure.passes and (allowed < 0 or record.losses < allowed):
            self._folder.update(name, record.model_copy(update={"losses": record.losses + 1}))
            self._report_line(f"{name}: {failure.reason}: tried again when the others have ended")
            return
        self._folder.update(name, record.model_copy(update={"status": "failed", "reason": failure.reason}))
        self._report_line(f"{name}: failed: {failure.reason}")
        if not failure.own:
            self._reasons.append(failure.reason)
            epochs = sum(one.epochs for one in self._folder.records.values())
            self.shared_failure = failures.of_all(self._settings.train, self._reasons, epochs)


def name_of(trial: Trial) -> str:
    """The name of a trial, which is that of its run."""
    name: str = trial.config["name"]
    return name
