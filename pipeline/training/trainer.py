"""The trainer: train, evaluate, save and report, epoch by epoch, from the newest checkpoint to the last epoch.

The same code trains in this process and as one of several Ray Train workers, see :mod:`pipeline.training.context`.
"""

from __future__ import annotations

import itertools
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.metrics.classification import ClassificationMetrics
from pipeline.metrics.epoch import EpochTotals
from pipeline.runs.history import EpochRecord
from pipeline.runtime.background import BackgroundCalls
from pipeline.runtime.coordination import RankCoordinator, StepAction
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import loop, setup
from pipeline.training.callbacks import EvaluationEnd, StepEnd, default_callbacks
from pipeline.training.checkpointer import Checkpointer
from pipeline.training.context import RayContext, WorkerContext, WorkerSpec

BATCH_STATS_STEPS = 64
"""Batches from which the running statistics of averaged weights are recomputed: 0.9⁶⁴ of the old values remains."""


class Trainer:
    """Trains one run, as one of its ranks.

    Raises:
        UserError: the node does not see the run or its data set, or the newest checkpoint does not fit.
    """

    def __init__(self, spec: WorkerSpec, context: WorkerContext) -> None:
        self.settings, self.context = spec.settings, context
        setup.configure_torch(self.settings)
        self.compute = loop.Compute(context.device, self.settings.training.precision)
        self.data = setup.open_data(spec, context)
        self.state = setup.build_state(self.settings, self.data, context.device)
        self.training_form = setup.TrainingForm(self.settings, self.state, self.data, context, self.compute)
        self.background = BackgroundCalls()
        self.progress = ProgressWriter(spec.folder.path, context.rank != 0, self.background)
        self.checkpointer = Checkpointer(spec, context, self.data, self.progress)
        self.checkpointer.restore(self.state)
        self.callbacks = default_callbacks(spec, context, self.state, self.progress, self.background)

    def fit(self) -> bool:
        """Trains the epochs that are left; False if the run was stopped, with its state saved."""
        with ExitStack() as at_the_end:
            at_the_end.callback(self.background.close)
            for callback in self.callbacks:
                at_the_end.callback(callback.on_fit_end)
            with self.context.requests() as requested:
                self.coordinator = RankCoordinator(
                    requested,
                    60 * self.settings.checkpoint.every_minutes or None,
                    self.context.preemption_poll_seconds,
                )
                complete = self._train_epochs()
                self.coordinator.close()
        return complete

    def _train_epochs(self) -> bool:
        while (epoch := self.state.epochs_done + 1) <= self.settings.training.epochs:
            totals = self.train_epoch(epoch)
            if totals is None:
                return False
            evaluation = self.evaluate(epoch)
            if evaluation is None:
                return False
            metrics = self.save(totals, evaluation)
            self.context.report(metrics)
        return True

    def train_epoch(self, epoch: int) -> EpochTotals | None:
        """Trains an epoch, or its remaining steps; None if the run was stopped, with its state saved."""
        settings, state = self.settings, self.state
        network, images = self.training_form.of_epoch(epoch)
        totals = loop.train_epoch(
            network,
            images.epoch(epoch, state.epoch_in_progress.position),
            state.optimizer,
            state.schedule,
            epoch=epoch,
            compute=self.compute,
            resume_from=state.epoch_in_progress,
            label_smoothing=settings.training.label_smoothing,
            micro_batch_size=setup.micro_batch_size(settings),
            max_grad_norm=settings.optimizer.max_grad_norm,
            after_step=lambda step: self.after_step(epoch, step),
        )
        if totals is not None:
            state.epoch_in_progress = totals
            if epoch == settings.training.epochs:  # the final weights outlive an evaluation that fails
                self.announce(self.checkpointer.save_before_evaluation(state))
        return totals

    def after_step(self, epoch: int, step: loop.Step) -> bool:
        """Calls the callbacks after a training step and saves where it is due; False where the run is to stop."""
        action = self.coordinator.after_step()
        event = StepEnd(epoch, step, self.data.training.steps(), action)
        for callback in self.callbacks:
            action |= callback.on_step_end(event)
        every = self.settings.checkpoint.every_steps
        if action & (StepAction.SAVE | StepAction.STOP) or (every and step.number % every == 0):
            self.state.epoch_in_progress = step.totals()
            self.announce(self.checkpointer.save_within_epoch(self.state))
            self.coordinator.saved()
        return StepAction.STOP not in action

    def evaluate(self, epoch: int) -> EvaluationEnd | None:
        """Evaluates the network after an epoch, over all ranks; None if the run was stopped, with its state saved."""
        state, subset = self.state, self.settings.data.evaluate_on
        restore_statistics = loop.remember_statistics(state.eval_model)
        if state.average:
            batches = itertools.islice(self.data.training.epoch(epoch), BATCH_STATS_STEPS)
            loop.recompute_batch_stats(state.eval_model, batches, self.compute)
            loop.broadcast_running_stats(state.eval_model)
        loop.broadcast_running_stats(state.network)
        write_progress = self.progress.phase(epoch, "evaluation", self.data.evaluation.steps())

        def after_step(step: int) -> bool:
            write_progress(step)
            return StepAction.STOP not in self.coordinator.after_step()

        last = epoch == self.settings.training.epochs
        classification = ClassificationMetrics(self.data.classes, self.context.device) if last else None
        metrics = loop.evaluate(
            state.eval_model,
            self.data.evaluation.epoch(epoch),
            compute=self.compute,
            name=subset,
            observe=classification.update if classification else None,
            after_step=after_step,
        )
        if metrics is None:
            restore_statistics()  # a resumed run computes those of averaged weights again, from the same ones
            self.announce(self.checkpointer.save_within_epoch(state))
            return None
        evaluation = EvaluationEnd(epoch, subset, metrics, classification)
        for callback in self.callbacks:
            callback.on_evaluation_end(evaluation)
        return evaluation

    def save(self, totals: EpochTotals, evaluation: EvaluationEnd) -> dict[str, float]:
        """Adds a finished epoch to the history and saves the state; the epoch's metrics."""
        network, _ = self.training_form.of_epoch(evaluation.epoch)
        metrics = {
            **totals.metrics(),
            "train/waiting_for_gradients": loop.gradient_wait_fraction(network),
            "train/saving": self.checkpointer.seconds_within_epoch / totals.seconds,
            **evaluation.metrics,
            "epoch": float(evaluation.epoch),
            "workers": float(self.context.world_size),
        }
        steps = evaluation.epoch * self.data.training.steps()
        self.state.history.append(EpochRecord(evaluation.epoch, time.time(), metrics, steps))
        self.state.epoch_in_progress = EpochTotals()
        self.announce(self.checkpointer.save_epoch(self.state, score=metrics[f"{evaluation.subset}/top1"]))
        return metrics

    def announce(self, checkpoint: Path | None) -> None:
        """Calls the callbacks with a checkpoint that was stored; does nothing where none was."""
        if checkpoint is not None:
            self.context.saved()
            for callback in self.callbacks:
                callback.on_checkpoint(checkpoint)


def train_worker(spec: WorkerSpec, context: WorkerContext) -> bool:
    """Trains a run from its newest checkpoint to its last epoch; False if it was stopped before.

    Raises:
        UserError: an image cannot be decoded, the loss is not finite, a checkpoint does not fit or cannot be stored, or
            memory is too small.
    """
    with setup.memory_errors(spec.settings):
        return Trainer(spec, context).fit()


def run_on_ray(config: dict[str, Any]) -> None:
    """The function that Ray Train calls in each worker."""
    train_worker(config["spec"], RayContext(config["spec"]))
