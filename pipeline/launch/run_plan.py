"""The plan of a run, before it starts: workers, steps, memory, disk space and time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier, Event

import torch
from torch import nn

from data_prep.common.errors import count_of
from data_prep.common.files import format_bytes
from data_prep.common.parallel import cores
from data_prep.common.progress import format_duration
from data_prep.format.manifest import Manifest
from data_prep.loading.ffcv_reader import full_batches
from data_prep.loading.loader import batch_bounds
from pipeline import models
from pipeline.analysis.model_summary import describe
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.runtime import malloc
from pipeline.runtime.precision import disable_tf32
from pipeline.training import optimizers, schedules
from pipeline.training.dataloader import count_images
from pipeline.training.loop import Compute
from pipeline.training.setup import memory_errors

PROBE_STEPS, PROBE_IMAGES = 2, 64
"""Timed steps, after one for warm-up, and the largest number of images in each."""
STEP_SECONDS, CPU_FLOPS = 4, 1e10
"""How long a step on a CPU may take, about, and the floating-point operations that a core executes in a second."""


@dataclass(frozen=True)
class Plan:
    """What a run will do, and the resources that it needs."""

    workers: int
    """Processes that train; 1 without a cluster."""
    batch_size: int
    images_per_worker: int
    """Images of each worker per step, at most."""
    micro_batch_size: int
    """Images that a worker passes through the network at a time."""
    training_images: int
    evaluation_images: int
    steps_per_epoch: int
    epochs: int
    sizes: list[int]
    """Sizes of the training images, in pixels, ascending."""
    pixel_share: float
    """Mean number of pixels of a training image over all epochs, as a fraction of that of the largest."""
    classes: int
    parameters: int
    memory_bytes: int
    """Memory of a worker in a step: activations kept for the backward pass, weights, gradients, optimizer state."""
    checkpoint_bytes: int
    checkpoints_kept: int

    def __str__(self) -> str:
        sizes = f"{self.sizes[0]} pixels" if len(self.sizes) == 1 else f"{' → '.join(map(str, self.sizes))} pixels"
        parts = f", {self.micro_batch_size} at a time" if self.micro_batch_size < self.images_per_worker else ""
        images, steps = count_of(self.images_per_worker, "image"), count_of(self.steps_per_epoch, "step")
        return "\n".join(
            [
                f"workers      {self.workers}, {images} of {sizes} each per step{parts}",
                f"steps        {count_of(self.epochs, 'epoch')} of {steps}, {self.batch_size} images each, of "
                f"{self.training_images:,} training images; {self.evaluation_images:,} evaluated after each epoch",
                f"network      {self.parameters:,} parameters",
                f"memory       about {format_bytes(self.memory_bytes)} per worker, besides its libraries",
                f"checkpoints  {format_bytes(self.checkpoint_bytes)} each, up to {self.checkpoints_kept} are kept: "
                f"{format_bytes(self.checkpoint_bytes * (self.checkpoints_kept + 1))} of disk",
            ]
        )


def plan(settings: Settings, data: Manifest) -> Plan:
    """The plan of a run.

    Args:
        settings: of the run.
        data: manifest of its data set.
    """
    workers = max(1, settings.cluster.workers)
    share = -(-settings.training.batch_size // workers)
    micro_batch = min(share, settings.training.micro_batch_size or share)
    described = describe(settings, len(data.classes))
    training, evaluation = count_images(settings.data, data, settings.training.seed)
    learned, states = described.learned, 1 + optimizers.OPTIMIZERS[settings.optimizer.kind].state_tensors
    copies = states + 1 + (settings.optimizer.ema_decay > 0)
    stored = states + (settings.optimizer.ema_decay > 0)
    kept = settings.checkpoint
    sizes = [schedules.image_size(settings, epoch) for epoch in range(1, settings.training.epochs + 1)]
    return Plan(
        workers=workers,
        batch_size=settings.training.batch_size,
        images_per_worker=share,
        micro_batch_size=micro_batch,
        training_images=training,
        evaluation_images=evaluation,
        steps_per_epoch=full_batches(training, settings.training.batch_size, workers)
        if settings.data.reader == "ffcv"
        else len(batch_bounds(training, settings.training.batch_size)) - 1,
        epochs=settings.training.epochs,
        sizes=sorted(set(sizes)),
        pixel_share=sum(size**2 for size in sizes) / (len(sizes) * settings.data.image_size**2),
        parameters=learned,
        memory_bytes=described.held_bytes * micro_batch + 4 * learned * copies,
        checkpoint_bytes=4 * learned * stored,
        checkpoints_kept=kept.keep + kept.keep_best,
        classes=len(data.classes),
    )


@dataclass(frozen=True)
class Speed:
    """Estimated speed of a run, from a few steps on this machine."""

    images_per_second: float
    """Of all workers together, on images of the largest size."""
    images_per_step: int
    """Images of each worker in the timed steps."""
    seconds: float
    """Duration of the run: in proportion to the pixels, with evaluation three times as fast as training."""


def measure_speed(settings: Settings, plan: Plan) -> Speed:
    """Times training steps on random pixels.

    As many workers as fit on this machine compute at once, because cores slow each other down. A CPU takes as many
    images in a step as it can compute in about STEP_SECONDS, and at least two.
    """
    cluster = settings.cluster
    here = 1 if cluster.gpu else max(1, min(plan.workers, cores() // cluster.threads))
    images, threads = min(plan.micro_batch_size, PROBE_IMAGES), torch.get_num_threads()
    if not cluster.gpu:
        work = 6 * models.multiply_adds(settings.model, plan.classes, settings.data.image_size)  # forward and backward
        images = min(images, max(2, int(STEP_SECONDS * cluster.threads * CPU_FLOPS / work)))
    torch.set_num_threads(cluster.threads)
    malloc.keep_freed_memory()
    disable_tf32()
    stop = Event()
    try:
        device = torch.device("cuda" if cluster.gpu else "cpu")
        steps = [_step(settings, plan.classes, images, device) for _ in range(here)]
        ready = Barrier(here)

        def seconds(step: Callable[[], None]) -> float:
            try:
                step()
            except BaseException:
                ready.abort()  # the others would wait for ever
                raise
            ready.wait()
            started = time.perf_counter()
            for _ in range(PROBE_STEPS):
                if not stop.is_set():
                    step()
            return time.perf_counter() - started

        with ThreadPoolExecutor(here) as pool:
            try:
                speeds = [PROBE_STEPS * images / each for each in pool.map(seconds, steps)]
            finally:
                stop.set()  # a user who interrupts waits for one step
        speed = sum(speeds) * plan.workers / here
        seen = plan.epochs * (plan.training_images * plan.pixel_share + plan.evaluation_images / 3)
        return Speed(speed, images, seen / speed)
    finally:
        torch.set_num_threads(threads)


def describe_speed(settings: Settings, plan: Plan) -> str:
    """The last line of a plan: what :func:`measure_speed` finds, or why it is not asked.

    Raises:
        UserError: memory is too small.
    """
    if settings.cluster.gpu and not torch.cuda.is_available():
        return "speed        not measured: cluster.gpu is true, and torch sees no GPU on this machine"
    with memory_errors(settings):
        speed = measure_speed(settings, plan)
    return (
        f"speed        about {speed.images_per_second:,.0f} images/s of {plan.sizes[-1]} pixels (measured on this "
        f"machine, {speed.images_per_step} images a step): {format_duration(max(1.0, speed.seconds))}"
    )


def shortage(cluster: ClusterSettings) -> str | None:
    """What this machine lacks for the workers of a run that starts its own cluster, as a sentence; None if they fit."""
    enough = cluster.min_workers or cluster.workers
    if cluster.workers == 0 or cluster.address or os.environ.get("RAY_ADDRESS"):
        return None
    gpus = torch.cuda.device_count()
    fitting = min(cores() // cluster.threads, gpus if cluster.gpu else enough)
    if fitting >= enough:
        return None
    each = count_of(cluster.threads, "CPU") + (" and a GPU" if cluster.gpu else "")
    return (
        f"cluster.workers: {count_of(cluster.workers, 'worker')} with {each} each: too many, as this machine has "
        f"{count_of(cores(), 'CPU')} and {count_of(gpus, 'GPU')}; join a cluster by cluster.address, or lower "
        "cluster.workers or cluster.cpus_per_worker"
    )


def _step(settings: Settings, classes: int, images: int, device: torch.device) -> Callable[[], None]:
    """A function that takes a training step of a worker."""
    size = settings.data.image_size
    gpu = device.type == "cuda"
    network = models.build(settings.model, classes, size, settings.training.seed, gpu=gpu).to(device)
    if settings.training.activation_checkpointing:
        network.enable_activation_checkpointing()
    optimizer = optimizers.build_optimizer(network, settings.optimizer)
    compute = Compute(device, settings.training.precision)
    pixels = torch.randint(0, 256, (images, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.randint(0, classes, (images,), device=device)

    def step() -> None:
        nn.functional.cross_entropy(compute.logits(network, pixels), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step
