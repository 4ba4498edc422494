"""What a worker builds before its first step: its data, the state of the run, and the network in its training form."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from data_prep.common.errors import TrainingError, UserError, first_line, is_out_of_memory
from data_prep.common.files import format_bytes
from data_prep.common.progress import format_duration
from data_prep.format.manifest import ImageClass, load_manifest
from data_prep.maintain.stage import stage
from pipeline import models
from pipeline.config.schema import Settings
from pipeline.runs import paths
from pipeline.runs.train_state import TrainState
from pipeline.runtime.precision import disable_tf32
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import finetune, loop
from pipeline.training.context import WorkerContext, WorkerSpec
from pipeline.training.dataloader import ImageStream, Subset
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import build_schedule, image_size


@dataclass(frozen=True)
class RunData:
    """The data set of a run, as one rank sees it."""

    folder: Path
    """On this node: the staged copy, if `data.stage` is set."""
    training: ImageStream
    evaluation: ImageStream

    @property
    def classes(self) -> list[ImageClass]:
        """Classes, by the index of their labels."""
        return self.training.classes


def configure_torch(settings: Settings) -> None:
    """Sets the number of threads, and float32 in convolutions as in matrix products (no TensorFloat-32)."""
    torch.set_num_threads(settings.cluster.threads)
    disable_tf32()


@contextmanager
def memory_errors(settings: Settings) -> Iterator[None]:
    """Names the settings to change where memory is too small for a step of the body.

    Raises:
        TrainingError: memory is too small.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        where = "the GPU's memory" if settings.cluster.gpu else "memory"
        raise TrainingError(
            f"{where} is too small for a step ({first_line(error)[:200]}): set training.activation_checkpointing, or "
            "training.micro_batch_size to a fraction of the images of a worker's step, or lower training.batch_size, "
            "data.image_size or model.width_multiplier"
        ) from None


def open_data(spec: WorkerSpec, context: WorkerContext) -> RunData:
    """Opens the data set of a run on this node; stages it first if `data.stage` is set.

    Raises:
        UserError: the node does not see the run's folder, or has another data set than where the run was started.
    """
    settings, run = spec.settings, spec.folder
    if not (run.path / paths.IDENTITY).is_file():
        raise UserError(
            f"run.storage: node {platform.node()} does not see {run.path}: name a folder that all nodes share"
        )
    folder = Path(settings.data.path)
    if settings.data.stage:
        folder = _stage(settings.data.path, Path(settings.data.stage), ProgressWriter(run.path))
        context.wait_for_all()  # as long as it takes: the process group waits for half an hour at most
    if (digest := load_manifest(folder).digest) != run.identity.data_digest:
        raise UserError(
            f"data.path: {folder} on node {platform.node()} is another data set ({digest[:12]}) than where the run "
            f"was started ({run.identity.data_digest[:12]}): put the same one on every node"
        )
    return RunData(
        folder,
        open_stream(folder, settings, "train", context),
        open_stream(folder, settings, settings.data.evaluate_on, context),
    )


def _stage(location: str, folder: Path, progress: ProgressWriter) -> Path:
    """The staged data set; one worker of a node copies it, the others wait."""
    node, started = platform.node(), time.monotonic()

    def on_copy(size: int) -> None:
        progress.event(f"node {node} copies the data set to {folder}, {format_bytes(size)}")

    staged = stage(location, folder, on_copy=on_copy)
    if (seconds := time.monotonic() - started) > 60:
        progress.event(f"node {node} has the data set after {format_duration(seconds)}")
    return staged


def open_stream(folder: Path, settings: Settings, subset: Subset, context: WorkerContext) -> ImageStream:
    """The images of a subset for one rank, decoded by `data.decode_threads` threads."""
    threads = settings.data.decode_threads or (settings.cluster.threads if settings.cluster.gpu else 1)
    return ImageStream(
        folder,
        settings.data.model_copy(update={"decode_threads": threads}),
        subset,
        batch_size=settings.training.batch_size,
        seed=settings.training.seed,
        rank=context.rank,
        world_size=context.world_size,
        pin_memory=context.device.type == "cuda",
    )


def micro_batch_size(settings: Settings) -> int | None:
    """Images that a worker passes through the network at a time; None for all of its part of a batch.

    A worker of an elastic run takes as many as with all workers, so that its memory does not grow when others leave.
    """
    if settings.training.micro_batch_size is None and settings.cluster.min_workers is not None:
        return -(-settings.training.batch_size // settings.cluster.workers)
    return settings.training.micro_batch_size


def build_network(settings: Settings, classes: int, size: int) -> models.ImageNetwork:
    """The network for images of `size` pixels a side, with initial weights and frozen parts."""
    network = models.build(settings.model, classes, size, settings.training.seed, gpu=settings.cluster.gpu)
    if settings.training.activation_checkpointing:
        network.enable_activation_checkpointing()
    finetune.freeze(network, settings)
    return network


def build_state(settings: Settings, data: RunData, device: torch.device) -> TrainState:
    """The state at the start of a run: the same on every rank, as the seed decides the weights."""
    network = build_network(settings, len(data.classes), settings.data.image_size).to(device)
    optimizer = build_optimizer(network, settings.optimizer)
    schedule = build_schedule(optimizer, settings.optimizer, settings.training.epochs, data.training.steps())
    decay = settings.optimizer.ema_decay
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
    return TrainState(network, optimizer, schedule, history=[], average=average)


class TrainingForm:
    """The network as it is trained in an epoch: for its image size, wrapped for several ranks, compiled if asked for.

    The wavelets depend on the image size; all that is learned is shared with the network of the state.
    """

    def __init__(
        self, settings: Settings, state: TrainState, data: RunData, context: WorkerContext, compute: loop.Compute
    ) -> None:
        self._settings, self._state, self._data = settings, state, data
        self._context, self._compute = context, compute
        self._size = 0
        self._network: nn.Module | None = None
        self._stream = data.training

    def of_epoch(self, epoch: int) -> tuple[nn.Module, ImageStream]:
        """The network and the training images of an epoch, counted from 1."""
        if (size := image_size(self._settings, epoch)) != self._size:
            self._size = size
            self._network = None  # removes its hooks from the parameters before there are others
            self._network, self._stream = self._build(size), self._open(size)
        assert self._network is not None
        return self._network, self._stream

    def _open(self, size: int) -> ImageStream:
        settings = self._settings
        resized = settings.model_copy(update={"data": settings.data.model_copy(update={"image_size": size})})
        return open_stream(self._data.folder, resized, "train", self._context)

    def _build(self, size: int) -> nn.Module:
        settings, network = self._settings, self._state.network
        if size != settings.data.image_size:
            network = build_network(settings, len(self._data.classes), size).to(self._context.device)
            network.load_state_dict(self._state.network.state_dict(keep_vars=True), assign=True)
        trained: nn.Module = network
        if self._context.world_size > 1:  # running statistics stay each rank's own until they are broadcast
            trained = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        if settings.training.compile:  # training alone: evaluation would take a graph of its own
            trained = cast(nn.Module, torch.compile(trained))
        if self._context.world_size > 1:
            largest = -(-settings.training.batch_size // self._context.world_size)
            images = min(largest, micro_batch_size(settings) or largest)
            loop.warm_up_ddp_buckets(trained, images, size, self._compute)
        return trained
