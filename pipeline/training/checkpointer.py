"""Saving and restoring the state of a run: rank 0 writes, every rank reads."""

from __future__ import annotations

import json
import time
from pathlib import Path

from data_prep.common.errors import UserError
from data_prep.common.files import write_atomically
from pipeline import models
from pipeline.config.settings_io import to_yaml
from pipeline.runs import history, paths, remote_copy, train_state
from pipeline.runs.checkpoint_store import Checkpoints
from pipeline.runs.train_state import TrainState
from pipeline.runtime import system_info
from pipeline.runtime.collectives import broadcast_from_rank0
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import finetune
from pipeline.training.context import WorkerContext, WorkerSpec
from pipeline.training.setup import RunData


class Checkpointer:
    """The checkpoints of one run, as one rank sees them.

    Args:
        progress: takes the events that a user should read.
    """

    def __init__(self, spec: WorkerSpec, context: WorkerContext, data: RunData, progress: ProgressWriter) -> None:
        self._settings, self._run, self._rank = spec.settings, spec.folder, context.rank
        self._classes, self._progress = data.classes, progress
        kept = spec.settings.checkpoint
        self._store = Checkpoints(spec.folder.checkpoints, kept.keep, kept.keep_best)
        self._failed_saves = 0
        self._provisional: Path | None = None
        self.seconds_within_epoch = 0.0
        """Time spent on saving within the current epoch."""

    def restore(self, state: TrainState) -> None:
        """Puts the newest undamaged checkpoint into `state`; without one, the weights that fine-tuning starts with.

        Raises:
            UserError: a rank does not see the checkpoint, or it does not fit.
        """
        newest = self._find_newest() if self._rank == 0 else None
        name = broadcast_from_rank0(newest.name if newest else None)
        if name:
            folder = self._run.checkpoints / name
            if not folder.is_dir():
                raise UserError(
                    f"run.storage: worker {self._rank} does not see {folder}, which worker 0 has: name a folder that "
                    "all nodes share"
                )
            train_state.restore(folder, state)
        else:
            finetune.load(state.network, self._settings, self._classes, self._run.identity.start_digest)
        if self._rank == 0:
            # The checkpoint decides: a worker that wrote the history after it was interrupted.
            history.write(self._run.path, state.history)
            network = {
                "parameters": models.parameters(state.network),
                "multiply_adds": state.network.multiply_adds(),
            }
            for file, content in ((paths.ENVIRONMENT, system_info.describe()), (paths.NETWORK, network)):
                write_atomically(self._run.path / file, json.dumps(content, indent=1))

    def _find_newest(self) -> Path | None:
        """The newest undamaged checkpoint, fetched from `checkpoint.upload` where that has a newer one."""
        newest, complaints = self._store.recover()
        if upload := self._settings.checkpoint.upload:
            location = remote_copy.location_of(upload, self._run.path)
            try:
                if name := remote_copy.fetch_newest(location, self._run.path):
                    newest = self._run.checkpoints / name
                    self._progress.event(f"checkpoint {name} was fetched from {location}")
            except UserError as error:  # it answered when the command started, and ends no run that is under way
                self._progress.event(f"{error}: resuming from what is here")
        for complaint in complaints:
            self._progress.event(f"{complaint}; resuming from {newest.name if newest else 'the start of the run'}")
        return newest

    def save_within_epoch(self, state: TrainState) -> Path | None:
        """Saves a state within an epoch; the checkpoint on rank 0, if it could be stored."""
        if self._provisional and self._provisional.name == state.position.name:
            return None  # stored before the evaluation that was stopped
        started = time.perf_counter()
        stored = self._save(state, score=None)
        self.seconds_within_epoch += time.perf_counter() - started
        return stored

    def save_before_evaluation(self, state: TrainState) -> Path | None:
        """Saves the trained weights before an evaluation that could fail, until :meth:`save_epoch` replaces them."""
        if self._rank == 0 and not (self._run.checkpoints / state.position.name).exists():
            self._provisional = self._save(state, score=None)
        return self._provisional

    def save_epoch(self, state: TrainState, score: float) -> Path | None:
        """Saves a finished epoch and its history; the checkpoint on rank 0, if it could be stored.

        Args:
            score: decides which checkpoints are the best; higher is better.
        """
        self.seconds_within_epoch = 0.0
        stored = self._save(state, score)
        if stored:
            history.write(self._run.path, state.history)
        return stored

    def _save(self, state: TrainState, score: float | None) -> Path | None:
        """Stores the state on rank 0.

        Raises:
            UserError: storage failed too often, or the weights are not finite.
        """
        if self._rank != 0:
            return None
        if not all(bool(value.isfinite().all()) for value in state.network.parameters()):
            raise UserError(
                f"weights are no longer finite after step {state.epoch_in_progress.steps} of epoch "
                f"{state.epochs_done + 1}, so that they are not stored: lower optimizer.learning_rate, or set "
                "optimizer.max_grad_norm"
            )
        try:
            stored = self._store.write(
                state.position,
                score,
                lambda folder: self._write(folder, state),
                replaces=self._provisional,
            )
        except OSError as error:
            self._report_failure(error, last=state.epochs_done == self._settings.training.epochs)
            return None
        self._failed_saves, self._provisional = 0, None
        return stored

    def _write(self, folder: Path, state: TrainState) -> None:
        train_state.save(folder, state, self._settings, self._classes)
        (folder / paths.IDENTITY_COPY).write_text(to_yaml(self._run.identity), encoding="utf-8")

    def _report_failure(self, error: OSError, *, last: bool) -> None:
        """Warns that a checkpoint could not be stored, and raises where no later one can be waited for."""
        self._failed_saves += 1
        problem = f"run.storage: {self._run.path} cannot be written ({error.strerror or error})"
        if last or self._failed_saves > self._settings.checkpoint.max_save_failures:
            raise UserError(f"{problem}: free disk space, then rerun the same command to resume") from None
        self._progress.event(f"{problem}: training continues, and the next checkpoint tries again")
