"""What each worker of a run does: resume, then train, evaluate and store, epoch by epoch, and save within epochs.

The same function trains in this process and as one of several Ray Train workers, see :mod:`pipeline.training.context`.
"""

from __future__ import annotations

import itertools
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn, profiler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_prep.common.errors import UserError
from data_prep.common.files import write_atomically
from data_prep.format import manifest
from data_prep.maintain.stage import stage
from pipeline import models
from pipeline.config.schema import Settings
from pipeline.metrics import report
from pipeline.metrics.classification import ClassificationMetrics
from pipeline.metrics.epoch import EpochTotals
from pipeline.runs import history, paths, remote_copy, train_state
from pipeline.runs.checkpoint_store import Checkpoints
from pipeline.runs.history import StepLog
from pipeline.runs.remote_copy import Uploads
from pipeline.runtime import system_info
from pipeline.runtime.collectives import broadcast_from_rank0
from pipeline.runtime.coordination import RankCoordinator, StepAction
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import finetune, loop
from pipeline.training.context import RayContext, WorkerContext, WorkerSpec
from pipeline.training.dataloader import ImageStream, Subset
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import build_schedule, image_size

ENVIRONMENT_FILE, TRACE, REPORT = "environment.json", "trace.json", "evaluation"
PROFILED_STEPS = 4
STATISTICS_STEPS = 64
"""Batches by which the statistics of averaged weights are computed anew: of what was there before, 0.9⁶⁴ remains."""


def train(job: WorkerSpec, session: WorkerContext) -> bool:
    """Trains the run of `job` to its end, from its newest checkpoint on; whether it came there, or was told to stop.

    Raises:
        UserError: an image cannot be decoded, the loss is not finite, a checkpoint does not fit or cannot be stored, or
            memory is too small.
    """
    try:
        return _Work(job, session).run()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _too_little_memory(job.settings, error) from None
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):
            raise _too_little_memory(job.settings, error) from None
        raise


class _Work:
    """A worker at work."""

    def __init__(self, job: WorkerSpec, session: WorkerContext) -> None:
        settings = job.settings
        self._settings, self._session, self._run = settings, session, job.folder
        self.is_rank_zero = session.rank == 0
        torch.set_num_threads(settings.cluster.threads)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions as in matrix products
        if not (job.folder.path / paths.IDENTITY).is_file():
            raise UserError(
                f"run.storage: node {platform.node()} does not see {job.folder.path}: name a folder that all nodes "
                "share"
            )
        folder = Path(settings.data.path)
        if settings.data.stage:
            folder = stage(settings.data.path, Path(settings.data.stage))  # one worker of a node copies, others wait
        if (digest := manifest.load(folder).digest) != job.folder.identity.data_digest:
            raise UserError(
                f"data.path: {folder} on node {platform.node()} is another data set ({digest[:12]}) than where the run "
                f"was started ({job.folder.identity.data_digest[:12]}): put the same one on every node"
            )
        self._data = folder
        self._training = _stream(folder, settings, "train", session)
        self._evaluation = _stream(folder, settings, settings.data.evaluate_on, session)
        self._state = _build(settings, len(self._training.classes), self._training.steps(), session.device)
        self._notes = ProgressWriter(job.folder.path, silent=not self.is_rank_zero)
        kept = settings.checkpoint
        self._checkpoints = Checkpoints(job.folder.checkpoints, kept.keep, kept.keep_best)
        self._uploads_to = kept.upload and remote_copy.location_of(kept.upload, job.folder.path)
        self._steps = StepLog(job.folder.path, settings.tracking.every_steps) if self.is_rank_zero else None
        self._failed_saves, self._saving = 0, 0.0
        self._warned = False
        self._profiler = self._new_profiler() if job.profile and self.is_rank_zero else None
        self._restore(job)
        self._compute = loop.Compute(session.device, settings.training.precision)
        self._size = 0

    def run(self) -> bool:
        """All epochs that are left; whether none is."""
        minutes = self._settings.checkpoint.every_minutes
        with self._uploading(), self._session.stoppable() as stop_requested, self._profiler or nullcontext():
            self._control = RankCoordinator(stop_requested, 60 * minutes or None, self._session.preemption_poll_seconds)
            while self._state.epochs_done < self._settings.training.epochs:
                if not self._epoch(self._state.epochs_done + 1):
                    return False
            self._control.close()
        return True

    @contextmanager
    def _uploading(self) -> Iterator[None]:
        """Copies checkpoints in the background while the body runs, and what is left of that afterwards."""
        self._uploads = Uploads(self._uploads_to, self._run.path, self._notes.event) if self._uploads_to else None
        try:
            yield
        finally:
            if self._uploads:
                self._uploads.close()

    def _new_profiler(self) -> profiler.profile:
        """Looks at a few steps, once the first ones are over, and writes a trace into the run's folder."""
        trace = self._run.path / TRACE

        def write(found: profiler.profile) -> None:
            found.export_chrome_trace(str(trace))
            self._notes.event(f"profile of {PROFILED_STEPS} steps: {trace} (open it in ui.perfetto.dev)")

        activities = [profiler.ProfilerActivity.CPU]
        if self._session.device.type == "cuda":
            activities.append(profiler.ProfilerActivity.CUDA)
        steps = profiler.schedule(wait=2, warmup=2, active=PROFILED_STEPS, repeat=1)
        return profiler.profile(activities=activities, schedule=steps, on_trace_ready=write)

    def _restore(self, job: WorkerSpec) -> None:
        """The state of the newest checkpoint that is whole, or a new one."""
        state, settings = self._state, self._settings
        if (
            self.is_rank_zero
            and self._uploads_to
            and (name := remote_copy.fetch_newest(self._uploads_to, self._run.path))
        ):
            self._notes.event(f"checkpoint {name} was fetched from {self._uploads_to}")
        newest, complaints = self._checkpoints.recover() if self.is_rank_zero else (None, [])
        for complaint in complaints:
            self._notes.event(f"{complaint}; the run goes on from {newest.name if newest else 'its start'}")
        name = broadcast_from_rank0(newest.name if newest else None)
        if name:
            folder = job.folder.checkpoints / name
            if not folder.is_dir():
                raise UserError(
                    f"run.storage: worker {self._session.rank} does not see {folder}, which worker 0 has: name a "
                    "folder that all nodes share"
                )
            train_state.restore(folder, state)
        else:
            finetune.load(state.network, settings, self._training.classes, job.folder.identity.start_digest)
        if self.is_rank_zero:
            # The checkpoint decides: whoever wrote after it was interrupted.
            history.write(self._run.path, state.history)
            described = json.dumps(system_info.describe(), indent=1)
            write_atomically(self._run.path / ENVIRONMENT_FILE, described)

    def _resize(self, size: int) -> None:
        """Makes ready to train on images of another size: the wavelets are others, all that is learned is the same."""
        if size == self._size:
            return
        settings, state, session = self._settings, self._state, self._session
        self._size, network = size, state.network
        self._trained: nn.Module | None = None  # its hooks on the parameters go before others come
        if size != settings.data.image_size:
            network = _network(settings, len(self._training.classes), size).to(session.device)
            network.load_state_dict(state.network.state_dict(keep_vars=True), assign=True)
        resized = settings.model_copy(update={"data": settings.data.model_copy(update={"image_size": size})})
        self._stream = _stream(self._data, resized, "train", session)
        self._trained = _distributed(network, session)
        if settings.training.compile:  # training alone: evaluation would take a graph of its own
            self._trained = cast(nn.Module, torch.compile(self._trained))
        if session.world_size > 1:
            largest = -(-settings.training.batch_size // session.world_size)
            loop.warm_up_ddp_buckets(
                self._trained, min(largest, settings.training.micro_batch_size or largest), size, self._compute
            )

    def _epoch(self, epoch: int) -> bool:
        """Trains, evaluates and stores an epoch, or what is left of it; whether it came to its end."""
        self._resize(image_size(self._settings, epoch))
        sums = self._train(epoch)
        if sums is None:  # what it came to is saved
            return False
        self._state.epoch_in_progress = sums
        found = self._evaluate(epoch)
        if found is None:
            self._save(None)
            return False
        self._finish(epoch, sums, found)
        return True

    def _train(self, epoch: int) -> EpochTotals | None:
        """Takes the steps of an epoch that are left; None if the run was told to stop."""
        settings, state = self._settings, self._state
        assert self._trained is not None
        return loop.train_epoch(
            self._trained,
            self._stream.epoch(epoch, state.epoch_in_progress.position),
            state.optimizer,
            state.schedule,
            epoch=epoch,
            compute=self._compute,
            resume_from=state.epoch_in_progress,
            label_smoothing=settings.training.label_smoothing,
            micro_batch_size=settings.training.micro_batch_size,
            max_grad_norm=settings.optimizer.max_grad_norm,
            after_step=self._after_step(epoch),
        )

    def _evaluate(self, epoch: int) -> dict[str, float] | None:
        """What the network of all ranks comes to after an epoch, with a report after the last; None if it was told to
        stop."""
        settings, state = self._settings, self._state
        if state.average:
            few = itertools.islice(self._training.epoch(epoch), STATISTICS_STEPS)
            loop.recompute_batch_stats(state.eval_model, few, self._compute)
            loop.broadcast_running_stats(state.eval_model)
        loop.broadcast_running_stats(state.network)
        note = self._notes.phase(epoch, "evaluation", self._evaluation.steps())

        def after_step(step: int) -> bool:
            note(step)
            return StepAction.STOP not in self._control.after_step()

        last = epoch == settings.training.epochs
        observer = ClassificationMetrics(self._training.classes, self._session.device) if last else None
        found = loop.evaluate(
            state.eval_model,
            self._evaluation.epoch(epoch),
            compute=self._compute,
            name=settings.data.evaluate_on,
            observe=observer.update if observer else None,
            after_step=after_step,
        )
        if observer and found is not None:
            self._report(observer, found)
        return found

    def _finish(self, epoch: int, sums: EpochTotals, found: dict[str, float]) -> None:
        """Writes down what an epoch came to, stores the state, and reports."""
        settings, state, session = self._settings, self._state, self._session
        assert self._trained is not None
        metrics = {
            **sums.metrics(),
            "train/waiting_for_gradients": loop.exposed_comm_fraction(self._trained),
            "train/saving": self._saving / sums.seconds,
            **found,
            "epoch": float(epoch),
            "workers": float(session.world_size),
        }
        self._saving = 0.0
        state.history.append(history.EpochRecord(epoch, time.time(), metrics))
        state.epoch_in_progress = EpochTotals()
        if self._save(found[f"{settings.data.evaluate_on}/top1"]):
            history.write(self._run.path, state.history)
        session.report(metrics)

    def _report(self, observer: ClassificationMetrics, found: dict[str, float]) -> None:
        """Writes what the last evaluation found into the run's folder; every rank takes part."""
        settings, name = self._settings, self._settings.data.evaluate_on
        result = observer.report(
            checkpoint=str(self._run.path),
            data=settings.data.path,
            data_digest=self._run.identity.data_digest,
            split=name,
            loss=found[f"{name}/loss"],
            skipped_images=round(found[f"{name}/skipped_images"]),
        )
        if self.is_rank_zero:
            try:
                report.write(result, self._run.path / REPORT)
            except UserError as error:  # the network is worth more than the report on it
                self._notes.event(str(error))

    def _after_step(self, epoch: int) -> Callable[[loop.Step], bool]:
        """What happens after each step of an epoch; it says whether to go on."""
        steps = self._training.steps()
        note = self._notes.phase(epoch, "training", steps)
        every = self._settings.checkpoint.every_steps

        def after_step(step: loop.Step) -> bool:
            if self._profiler:
                self._profiler.step()
            if self._state.average:
                self._state.average.update_parameters(self._state.network)
            note(step.number)
            if self._steps and self._steps.due(overall := (epoch - 1) * steps + step.number):
                self._steps.add(overall, step.recent())
            wish = self._control.after_step()
            if StepAction.LOOK in wish and self._session.preempted() and not self._warned:
                self._warned = True
                self._notes.event("a node is about to be taken away: the state of the run is saved")
                wish |= StepAction.SAVE
            if wish & (StepAction.SAVE | StepAction.STOP) or (every and step.number % every == 0):
                self._state.epoch_in_progress = step.totals()
                started = time.perf_counter()
                self._save(None)
                self._saving += time.perf_counter() - started
                self._control.saved()
            return StepAction.STOP not in wish

        return after_step

    def _save(self, score: float | None) -> bool:
        """Stores the state of the run, on the first rank; whether it was.

        Raises:
            UserError: storage failed too often, or nothing that is good would be stored.
        """
        if not self.is_rank_zero:
            return False
        state, settings, classes = self._state, self._settings, self._training.classes
        if not all(bool(value.isfinite().all()) for value in state.network.parameters()):
            raise UserError(
                f"weights are no longer finite after step {state.position.steps} of epoch {state.epochs_done + 1}, "
                "so that they are not stored: lower optimizer.learning_rate, or set optimizer.max_grad_norm"
            )
        try:
            self._checkpoints.write(
                state.position, score, lambda folder: train_state.save(folder, state, settings, classes)
            )
        except OSError as error:
            self._failed_saves += 1
            what = f"run.storage: {self._run.path} cannot be written ({error.strerror or error})"
            last = state.epochs_done == settings.training.epochs
            if last or self._failed_saves > settings.checkpoint.max_save_failures:
                raise UserError(f"{what}: make room, and give the same command again; it goes on from there") from None
            self._notes.event(f"{what}: training goes on, and the next checkpoint tries again")
            return False
        self._failed_saves = 0
        if self._uploads:
            self._uploads.follow()
        return True


def run_on_ray(config: dict[str, Any]) -> None:
    """The function that Ray Train calls in each worker."""
    train(config["job"], RayContext(config["job"]))


def _stream(folder: Path, settings: Settings, subset: Subset, session: WorkerContext) -> ImageStream:
    threads = settings.data.decode_threads or (settings.cluster.threads if settings.cluster.gpu else 1)
    return ImageStream(
        folder,
        settings.data.model_copy(update={"decode_threads": threads}),
        subset,
        batch_size=settings.training.batch_size,
        seed=settings.training.seed,
        rank=session.rank,
        world_size=session.world_size,
        pin_memory=session.device.type == "cuda",
    )


def _build(settings: Settings, classes: int, steps: int, device: torch.device) -> train_state.TrainState:
    """Everything with new weights: the same on every rank, since the seed decides them."""
    network = _network(settings, classes, settings.data.image_size).to(device)
    optimizer = build_optimizer(network, settings.optimizer)
    schedule = build_schedule(optimizer, settings.optimizer, settings.training.epochs, steps)
    decay = settings.optimizer.ema_decay
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
    return train_state.TrainState(network, optimizer, schedule, history=[], average=average)


def _network(settings: Settings, classes: int, size: int) -> models.ImageNetwork:
    network = models.build(settings.model, classes, size, settings.training.seed)
    if settings.training.activation_checkpointing:
        network.recompute_blocks()
    finetune.freeze(network, settings)
    return network


def _too_little_memory(settings: Settings, error: Exception) -> UserError:
    where = "the GPU's memory" if settings.cluster.gpu else "memory"
    return UserError(
        f"{where} is too small for a step ({str(error).splitlines()[0][:200]}): set training.activation_checkpointing, "
        "or training.micro_batch_size to a part of what a worker takes at once, or lower training.batch_size, "
        "data.image_size or model.width_multiplier"
    )


def _distributed(network: nn.Module, session: WorkerContext) -> nn.Module:
    """The network whose gradients are averaged over ranks; running statistics stay each rank's own until shared."""
    if session.world_size == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
