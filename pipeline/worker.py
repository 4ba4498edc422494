"""What each worker of a run does: resume, then train, evaluate and commit, epoch by epoch.

The same function trains in this process (:class:`LocalSession`) and as one of several Ray Train workers
(:class:`RaySession`). A session knows this worker's rank, what was committed last, and how to commit an epoch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data_prep.stage import stage
from pipeline import checkpoint, engine, environment, history, layout, models, start
from pipeline.data import ImageStream, Subset
from pipeline.optim import build_optimizer, build_schedule
from pipeline.progress import Notes
from pipeline.run_folder import RunFolder
from pipeline.settings import Settings

CHECKPOINTS_KEPT = 2
ENVIRONMENT_FILE = "environment.json"


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    settings: Settings
    """With absolute paths: workers run in folders of their own."""
    folder: RunFolder


class Session(Protocol):
    """A worker's place among the others, and its way to storage."""

    rank: int
    world_size: int
    device: torch.device

    def latest(self) -> Path | None:
        """The checkpoint that was committed last; the same on every rank."""

    def commit(self, epoch: int, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Stores what `save` writes into a folder and reports the epoch, all or nothing; every rank calls it."""


def train(job: Job, session: Session) -> None:
    """Trains the run of `job` to its end, from its last checkpoint on.

    Raises:
        UserError: an image cannot be decoded, the loss is not finite, or a checkpoint is damaged or has changed.
    """
    settings, chief = job.settings, session.rank == 0
    torch.set_num_threads(settings.cluster.cpus_per_worker)
    folder = Path(settings.data.path)
    if settings.data.stage:
        folder = stage(settings.data.path, Path(settings.data.stage))  # one worker of a node copies, the others wait
    training_images = _stream(folder, settings, "train", session)
    evaluation_images = _stream(folder, settings, settings.data.evaluate_on, session)
    state = _build(settings, len(training_images.classes), training_images.steps(), session.device)
    latest = session.latest()
    if latest:
        checkpoint.restore(latest, state)
    else:
        start.load(state.network, settings, training_images.classes, job.folder.identity.start_digest)
    notes = Notes(job.folder.path, silent=not chief)
    if chief:
        history.write(job.folder.path, state.history)  # the checkpoint decides: whoever wrote after it was interrupted
        history.write_atomically(job.folder.path / ENVIRONMENT_FILE, json.dumps(environment.describe(), indent=1))

    compute = engine.Compute(session.device, settings.training.precision)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in convolutions as in matrix products
    trained = _distributed(state.network, session)
    if settings.training.compile:  # training alone: evaluation would take a graph of its own
        trained = cast(nn.Module, torch.compile(trained))
    for epoch in range(state.epochs_done + 1, settings.training.epochs + 1):
        metrics = engine.train_epoch(
            trained,
            training_images.epoch(epoch),
            state.optimizer,
            state.schedule,
            epoch=epoch,
            compute=compute,
            label_smoothing=settings.training.label_smoothing,
            on_step=notes.phase(epoch, "training", training_images.steps()),
        )
        engine.share_buffers(state.network)
        metrics |= engine.evaluate(
            state.network,
            evaluation_images.epoch(epoch),
            compute=compute,
            name=settings.data.evaluate_on,
            on_step=notes.phase(epoch, "evaluation", evaluation_images.steps()),
        )
        metrics["epoch"] = epoch
        state.history.append(history.EpochRecord(epoch, time.time(), metrics))
        session.commit(epoch, metrics, lambda folder: checkpoint.save(folder, state, settings, training_images.classes))


class LocalSession:
    """The only worker, in this process."""

    rank = 0
    world_size = 1

    def __init__(self, job: Job) -> None:
        self._folder = job.folder
        self.device = torch.device("cuda" if job.settings.cluster.gpu else "cpu")

    def latest(self) -> Path | None:
        """The last checkpoint in the run's folder."""
        return self._folder.latest_checkpoint()

    def commit(self, epoch: int, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Writes beside the other checkpoints and renames: a checkpoint is there in full or not at all."""
        target = self._folder.checkpoints / layout.checkpoint_name(epoch)
        partial = target.with_name(f"partial-{target.name}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(partial)
        partial.rename(target)
        history.write(self._folder.path, history.read(target))
        for old in layout.stored_checkpoints(self._folder.path)[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(old)


class RaySession:
    """One of several Ray Train workers."""

    def __init__(self, job: Job) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        # Ray names a GPU wherever it sees one, reserved or not.
        self.device: torch.device = ray.train.torch.get_device() if job.settings.cluster.gpu else torch.device("cpu")

    def latest(self) -> Path | None:
        """The checkpoint from which Ray Train wants this worker to continue."""
        import ray.train

        latest = ray.train.get_checkpoint()
        return Path(latest.path) if latest else None

    def commit(self, epoch: int, metrics: dict[str, Any], save: Callable[[Path], None]) -> None:
        """Uploads rank 0's checkpoint to the run's folder and reports the metrics: a barrier for all ranks."""
        import ray.train

        with tempfile.TemporaryDirectory() as scratch:
            saved = None
            if self.rank == 0:
                save(Path(scratch))
                saved = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report(metrics, checkpoint=saved, checkpoint_dir_name=layout.checkpoint_name(epoch))


def run_on_ray(config: dict[str, Any]) -> None:
    """The function that Ray Train calls in each worker."""
    train(config["job"], RaySession(config["job"]))


def _stream(folder: Path, settings: Settings, subset: Subset, session: Session) -> ImageStream:
    return ImageStream(
        folder,
        settings.data,
        subset,
        batch_size=settings.training.batch_size,
        seed=settings.training.seed,
        rank=session.rank,
        world_size=session.world_size,
        pin_memory=session.device.type == "cuda",
    )


def _build(settings: Settings, classes: int, steps: int, device: torch.device) -> checkpoint.Training:
    """Everything with new weights: the same on every rank, since the seed decides them."""
    network = models.build(settings.model, classes, settings.data.image_size, settings.training.seed).to(device)
    start.freeze(network, settings)
    optimizer = build_optimizer(network, settings.optimizer)
    schedule = build_schedule(optimizer, settings.optimizer, settings.training.epochs, steps)
    return checkpoint.Training(network, optimizer, schedule, history=[])


def _distributed(network: nn.Module, session: Session) -> nn.Module:
    """The network whose gradients are averaged over ranks; running statistics stay each rank's own until shared."""
    if session.world_size == 1:
        return network
    return DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
