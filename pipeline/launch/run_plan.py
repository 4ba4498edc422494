"""What a run will do and need, said before it does it: workers, steps, memory, disk, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

import torch
from torch import nn

from data_prep.common.files import format_bytes
from data_prep.common.parallel import cores
from data_prep.common.progress import format_duration
from data_prep.format.manifest import Manifest
from data_prep.loading.loader import batch_bounds
from pipeline import models
from pipeline.analysis.model_summary import describe
from pipeline.config.schema import Settings
from pipeline.runtime import malloc
from pipeline.training import optimizers, schedules
from pipeline.training.dataloader import count_images
from pipeline.training.loop import Compute

PROBE_STEPS, PROBE_IMAGES = 2, 64
"""Steps that are timed, after one that is not, and how many images they have at most."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a run."""

    workers: int
    """Processes that train, this one if there is no cluster."""
    batch_size: int
    images_per_worker: int
    """In a step, at most."""
    micro_batch_size: int
    """Of those, that a worker passes through the network together."""
    training_images: int
    evaluation_images: int
    steps_per_epoch: int
    epochs: int
    sizes: list[int]
    """Of the training images, in the order in which they grow."""
    pixel_share: float
    """Pixels of a training image, averaged over all epochs, as a part of those of the largest."""
    parameters: int
    memory_bytes: int
    """Of a worker in a step: what is kept for the backward pass, and weights, gradients and the optimizer's state."""
    checkpoint_bytes: int
    checkpoints_kept: int
    images_per_second: float
    """Of all workers together, on images of the largest size, if they are as fast as a few steps on this machine."""
    measured_here: bool
    """This machine is such a one as the workers run on: it has a GPU if they have."""

    @property
    def seconds(self) -> float:
        """That training takes, in proportion to the pixels, with evaluations at three times the speed."""
        images = self.epochs * (self.training_images * self.pixel_share + self.evaluation_images / 3)
        return images / self.images_per_second

    def __str__(self) -> str:
        sizes = f"{self.sizes[0]} pixels" if len(self.sizes) == 1 else f"{' → '.join(map(str, self.sizes))} pixels"
        parts = f", {self.micro_batch_size} at once" if self.micro_batch_size < self.images_per_worker else ""
        where = "measured here" if self.measured_here else "measured here on the CPU, GPUs are faster"
        return "\n".join(
            [
                f"workers      {self.workers}, {self.images_per_worker} images of {sizes} each in a step{parts}",
                f"steps        {self.epochs} epochs of {self.steps_per_epoch}, {self.batch_size} images each, "
                f"of {self.training_images:,} training images; {self.evaluation_images:,} evaluated after each epoch",
                f"network      {self.parameters:,} parameters",
                f"memory       about {format_bytes(self.memory_bytes)} for each worker, beside its libraries",
                f"checkpoints  {format_bytes(self.checkpoint_bytes)} each, up to {self.checkpoints_kept} are kept: "
                f"{format_bytes(self.checkpoint_bytes * (self.checkpoints_kept + 1))} of disk",
                f"speed        about {self.images_per_second:,.0f} images/s of {self.sizes[-1]} pixels ({where}): "
                f"{format_duration(self.seconds)}",
            ]
        )


def plan(settings: Settings, data: Manifest) -> Plan:
    """The plan of a run; takes a few steps of a probe in this process.

    Args:
        data: the manifest of its data set.
    """
    workers = max(1, settings.cluster.workers)
    share = -(-settings.training.batch_size // workers)
    at_once = min(share, settings.training.micro_batch_size or share)
    described = describe(settings, len(data.classes))
    training, evaluation = count_images(settings.data, data, settings.training.seed)
    learned, states = described.learned, 1 + optimizers.OPTIMIZERS[settings.optimizer.kind].state_tensors
    copies = states + 1 + (settings.optimizer.ema_decay > 0)
    stored = states + (settings.optimizer.ema_decay > 0)
    kept = settings.checkpoint
    sizes = [schedules.image_size(settings, epoch) for epoch in range(1, settings.training.epochs + 1)]
    images_per_second, measured = _probe(settings, len(data.classes), at_once)
    return Plan(
        workers=workers,
        batch_size=settings.training.batch_size,
        images_per_worker=share,
        micro_batch_size=at_once,
        training_images=training,
        evaluation_images=evaluation,
        steps_per_epoch=len(batch_bounds(training, settings.training.batch_size)) - 1,
        epochs=settings.training.epochs,
        sizes=sorted(set(sizes)),
        pixel_share=sum(size**2 for size in sizes) / (len(sizes) * settings.data.image_size**2),
        parameters=learned,
        memory_bytes=described.held_bytes * at_once + 4 * learned * copies,
        checkpoint_bytes=4 * learned * stored,
        checkpoints_kept=kept.keep + kept.keep_best,
        images_per_second=images_per_second,
        measured_here=measured,
    )


def _probe(settings: Settings, classes: int, at_once: int) -> tuple[float, bool]:
    """Images/s of all workers' steps, on random pixels, and whether this machine has what they have.

    As many workers compute at once as this machine has room for, because cores slow each other down.
    """
    cluster = settings.cluster
    gpu = cluster.gpu and torch.cuda.is_available()
    workers = max(1, cluster.workers)
    here = 1 if gpu else max(1, min(workers, cores() // cluster.threads))
    images, threads = min(at_once, PROBE_IMAGES), torch.get_num_threads()
    torch.set_num_threads(cluster.threads)
    malloc.keep_freed_memory()
    try:
        steps = [_step(settings, classes, images, torch.device("cuda" if gpu else "cpu")) for _ in range(here)]
        ready = Barrier(here)

        def seconds(step: Callable[[], None]) -> float:
            step()
            ready.wait()
            started = time.perf_counter()
            for _ in range(PROBE_STEPS):
                step()
            return time.perf_counter() - started

        with ThreadPoolExecutor(here) as pool:
            speeds = [PROBE_STEPS * images / each for each in pool.map(seconds, steps)]
        return sum(speeds) * workers / here, gpu == cluster.gpu
    finally:
        torch.set_num_threads(threads)


def _step(settings: Settings, classes: int, images: int, device: torch.device) -> Callable[[], None]:
    """A training step of a worker."""
    size = settings.data.image_size
    network = models.build(settings.model, classes, size, settings.training.seed).to(device)
    if settings.training.activation_checkpointing:
        network.recompute_blocks()
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
