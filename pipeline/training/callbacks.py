"""Callbacks of the trainer: what happens beside training, at four hooks. Every rank reaches them alike, except for
`on_checkpoint`, which is rank 0's.

To add one from outside, register its builder in CALLBACKS and name it in the setting `training.callbacks`.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import profiler

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from pipeline.metrics import report
from pipeline.metrics.classification import ClassificationMetrics
from pipeline.metrics.epoch import METRICS
from pipeline.runs import paths, remote_copy
from pipeline.runs.history import StepLog, StepRecord, to_line
from pipeline.runs.journal import JournalWriter
from pipeline.runs.remote_copy import Uploads
from pipeline.runs.train_state import TrainState
from pipeline.runtime import system_info
from pipeline.runtime.background import BackgroundCalls
from pipeline.runtime.coordination import StepAction
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import loop
from pipeline.training.context import WorkerContext, WorkerSpec

PROFILED_STEPS = 4
END_SECONDS = 1.0
"""How long the end of training waits for a thread that may wait for storage."""
SILENT = 6
"""A level of messages above all of the profiler's library."""


@dataclass(frozen=True)
class StepEnd:
    """A finished training step."""

    epoch: int
    """Counted from 1."""
    step: loop.Step
    steps_per_epoch: int
    action: StepAction
    """What all ranks agreed to do after this step."""

    @property
    def number(self) -> int:
        """Number of the step in the whole run, counted from 1."""
        return (self.epoch - 1) * self.steps_per_epoch + self.step.number


@dataclass(frozen=True)
class EvaluationEnd:
    """A finished evaluation."""

    epoch: int
    """Counted from 1."""
    subset: str
    """What was evaluated on: validation or holdout."""
    metrics: dict[str, float]
    """By the names of the history, over all ranks."""
    classification: ClassificationMetrics | None
    """Accumulated metrics of the last evaluation of a run."""


class Callback:
    """Hooks of the trainer; each does nothing unless it is overridden. A hook that communicates must do so on every
    rank."""

    def on_step_end(self, event: StepEnd) -> StepAction:
        """After each training step, on every rank; returns what else to do, the same on every rank."""
        return StepAction.NOTHING

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        """After each evaluation, on every rank."""

    def on_checkpoint(self, checkpoint: Path) -> None:
        """After a checkpoint was stored in the folder `checkpoint`, on rank 0."""

    def on_fit_end(self) -> None:
        """When training ends in any way, on every rank."""


CALLBACKS: Registry[Callable[[WorkerSpec, WorkerContext, TrainState], Callback]] = Registry("training.callbacks")
"""Builders of the callbacks that `training.callbacks` can name."""


def default_callbacks(
    spec: WorkerSpec,
    context: WorkerContext,
    state: TrainState,
    progress: ProgressWriter,
    background: BackgroundCalls,
) -> list[Callback]:
    """The callbacks of every run, in the order in which they are called, then those of `training.callbacks`."""
    callbacks: list[Callback] = [WeightAverage(state), Progress(progress), Preemption(context, progress)]
    if context.leads_machine and spec.settings.tracking.system_seconds:
        callbacks.append(SystemLoad(spec))
    if context.rank == 0:
        callbacks.append(StepCurves(spec, background))
        if spec.profile:
            callbacks.insert(0, Profiler(spec, context, progress))
        if spec.settings.checkpoint.upload:
            callbacks.append(Upload(spec, spec.settings.checkpoint.upload, progress))
    callbacks.append(FinalReport(spec, context, progress))
    for name in spec.settings.training.callbacks:
        with explain_faults(f"training.callbacks: the builder of {name}"):
            callback = CALLBACKS.find(name)(spec, context, state)
        callbacks.append(NamedCallback(name, callback, progress))
    return callbacks


class NamedCallback(Callback):
    """A callback of `training.callbacks`, which is named in the errors of its hooks.

    Raises:
        UserError: a hook raises an exception, or returns something other than a StepAction. Not at the end of training,
            whose result it cannot change any more: there it is an event of the run.
    """

    def __init__(self, name: str, callback: Callback, progress: ProgressWriter) -> None:
        self._what, self._callback, self._progress = f"callback {name}", callback, progress

    def on_step_end(self, event: StepEnd) -> StepAction:
        with explain_faults(f"{self._what}: on_step_end"):
            action = self._callback.on_step_end(event)
        if not isinstance(action, StepAction):
            raise UserError(f"{self._what}: on_step_end returns {action!r}: return StepAction.NOTHING, or another one")
        return action

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        with explain_faults(f"{self._what}: on_evaluation_end"):
            self._callback.on_evaluation_end(event)

    def on_checkpoint(self, checkpoint: Path) -> None:
        with explain_faults(f"{self._what}: on_checkpoint"):
            self._callback.on_checkpoint(checkpoint)

    def on_fit_end(self) -> None:
        try:
            with explain_faults(f"{self._what}: on_fit_end"):
                self._callback.on_fit_end()
        except UserError as error:
            self._progress.event(str(error))


class WeightAverage(Callback):
    """Moves the exponential moving average of the weights, if the run keeps one."""

    def __init__(self, state: TrainState) -> None:
        self._state = state

    def on_step_end(self, event: StepEnd) -> StepAction:
        if self._state.average:
            self._state.average.update_parameters(self._state.network)
        return StepAction.NOTHING


class Progress(Callback):
    """Writes the position of the run for its display."""

    def __init__(self, progress: ProgressWriter) -> None:
        self._progress = progress
        self._epoch = 0
        self._write: Callable[[int], None] = lambda step: None

    def on_step_end(self, event: StepEnd) -> StepAction:
        if event.epoch != self._epoch:
            self._epoch = event.epoch
            self._write = self._progress.phase(event.epoch, "training", event.steps_per_epoch)
        self._write(event.step.number)
        return StepAction.NOTHING


class StepCurves(Callback):
    """Writes the metrics of every `tracking.every_steps` steps."""

    def __init__(self, spec: WorkerSpec, background: BackgroundCalls) -> None:
        self._log = StepLog(spec.folder.path, spec.settings.tracking.every_steps)
        self._background = background

    def on_step_end(self, event: StepEnd) -> StepAction:
        if self._log.due(event.number):
            self._log.add(StepRecord(event.number, time.time(), event.step.recent()))
            self._background.submit(self._log.flush)
        return StepAction.NOTHING

    def on_fit_end(self) -> None:
        self._background.submit(self._log.flush)  # what a full disk refused


class SystemLoad(Callback):
    """Records the load of this machine every `tracking.system_seconds` seconds, in a thread, on one worker of it."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._machine = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()) or "machine"
        self._journal = JournalWriter(spec.folder.path / paths.SYSTEM / f"{self._machine}.jsonl")
        self._seconds = spec.settings.tracking.system_seconds
        self._step = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def on_step_end(self, event: StepEnd) -> StepAction:
        self._step = event.number
        if self._thread is None:
            self._thread = threading.Thread(target=self._record, name="system-load", daemon=True)
            self._thread.start()
        return StepAction.NOTHING

    def on_fit_end(self) -> None:
        self._ended.set()
        if self._thread:
            self._thread.join(END_SECONDS)

    def _record(self) -> None:
        load = system_info.Load()
        while not self._ended.wait(self._seconds):
            metrics = {f"system/{self._machine}/{name}": value for name, value in load.measure().items()}
            self._journal.add(to_line(StepRecord(self._step, time.time(), metrics)))
            self._journal.flush()


class Preemption(Callback):
    """Saves once when the cluster announces that a node is about to be taken away."""

    def __init__(self, context: WorkerContext, progress: ProgressWriter) -> None:
        self._context, self._progress = context, progress
        self._announced = False

    def on_step_end(self, event: StepEnd) -> StepAction:
        if StepAction.POLL not in event.action or not self._context.preempted() or self._announced:
            return StepAction.NOTHING
        self._announced = True
        self._progress.event("a node is about to be taken away: saving the state of the run")
        return StepAction.SAVE


class Profiler(Callback):
    """Traces a few steps, after the first ones, into the run's folder."""

    def __init__(self, spec: WorkerSpec, context: WorkerContext, progress: ProgressWriter) -> None:
        trace = spec.folder.path / paths.TRACE

        def write(profile: profiler.profile) -> None:
            profile.export_chrome_trace(str(trace))
            progress.event(f"profile of {PROFILED_STEPS} steps: {trace} (open it in ui.perfetto.dev)")

        activities = [profiler.ProfilerActivity.CPU]
        if context.device.type == "cuda":
            activities.append(profiler.ProfilerActivity.CUDA)
        else:  # without a GPU, the profiler's library prints that it looked for one
            os.environ.setdefault("KINETO_LOG_LEVEL", str(SILENT))
        steps = profiler.schedule(wait=2, warmup=2, active=PROFILED_STEPS, repeat=1)
        self._profile = profiler.profile(activities=activities, schedule=steps, on_trace_ready=write)
        self._profile.start()

    def on_step_end(self, event: StepEnd) -> StepAction:
        self._profile.step()
        return StepAction.NOTHING

    def on_fit_end(self) -> None:
        self._profile.stop()


class Upload(Callback):
    """Copies checkpoints to `checkpoint.upload` in the background."""

    def __init__(self, spec: WorkerSpec, upload: str, progress: ProgressWriter) -> None:
        run = spec.folder.path
        self._uploads = Uploads(remote_copy.location_of(upload, run), run, progress.event)

    def on_checkpoint(self, checkpoint: Path) -> None:
        self._uploads.follow()

    def on_fit_end(self) -> None:
        self._uploads.close()


class FinalReport(Callback):
    """Writes the report on the last evaluation into the run's folder."""

    def __init__(self, spec: WorkerSpec, context: WorkerContext, progress: ProgressWriter) -> None:
        self._spec, self._rank, self._progress = spec, context.rank, progress

    def on_evaluation_end(self, event: EvaluationEnd) -> None:
        if event.classification is None:
            return
        run, subset = self._spec.folder, event.subset
        result = event.classification.report(  # a collective operation
            checkpoint=str(run.path),
            data=self._spec.settings.data.path,
            data_digest=run.identity.data_digest,
            split=subset,
            loss=event.metrics[f"{subset}/loss"],
            skipped_images=round(event.metrics[f"{subset}/skipped_images"]),
            registered={name: event.metrics[f"{subset}/{name}"] for name in METRICS},
        )
        if self._rank == 0:
            try:
                report.write(result, run.path / paths.REPORT)
            except UserError as error:  # the network is worth more than the report on it
                self._progress.event(str(error))
