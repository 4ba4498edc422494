"""One epoch of training and one evaluation: plain PyTorch, on one device or on one rank of several.

    B   images of this rank in a batch
    C   classes

Losses and counts are summed on the device and read on demand, so that the host never waits for a GPU at a step. They
are summed over ranks at the same time; ranks may see different numbers of images, and each image counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data_prep.common.errors import UserError
from pipeline.metrics.epoch import METRICS, EpochAccumulator, EpochTotals, NamedSums, check_registered, registered_sums
from pipeline.metrics.nonfinite import NonFiniteGuard
from pipeline.runtime.collectives import sum_over_ranks, world_size
from pipeline.runtime.torch_internals import communication_times

Precision = Literal["float32", "bfloat16"]
LAG = 8
"""Steps after which the loss of a GPU is checked: it has been computed by then, so the host does not wait for it."""

Item = TypeVar("Item")


class Batch(Protocol):
    """This rank's part of a global batch."""

    @property
    def images(self) -> Tensor:
        """Pixels, uint8 (B, H, W, 3)."""

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 (B,)."""

    @property
    def indices(self) -> Tensor:
        """Which samples of the split these are, int64 (B,)."""

    @property
    def skipped(self) -> int:
        """Damaged images that this rank left out."""

    @property
    def size(self) -> int:
        """Images in the global batch, over all ranks."""

    @property
    def end(self) -> int:
        """Position in the epoch behind the global batch."""


@dataclass(frozen=True)
class Compute:
    """Where and how precisely the network computes."""

    device: torch.device
    precision: Precision = "float32"

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Class scores in float32, (B, C), whatever precision the layers compute in."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return network(images).float()

    def move(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; from pinned memory, without waiting for the copy."""
        return tensor.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Step:
    """A finished training step."""

    number: int
    """In its epoch, counted from 1."""
    totals: Callable[[], EpochTotals]
    """The totals of the epoch so far, over all ranks; a collective operation. Raises UserError if a loss of the steps
    so far is not finite, so that no such state is saved."""
    recent: Callable[[], dict[str, float]]
    """Metrics of the steps since the last call, on this rank; never waits. On a GPU, losses and norms are `LAG`
    steps old."""


def train_epoch(
    network: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    epoch: int,
    compute: Compute,
    resume_from: EpochTotals | None = None,
    label_smoothing: float = 0.0,
    micro_batch_size: int | None = None,
    max_grad_norm: float | None = None,
    after_step: Callable[[Step], bool] = lambda step: True,
) -> EpochTotals | None:
    """Trains on each of `batches` once.

    Each rank's loss is the sum over its images divided by the *global* batch's size and multiplied by the number of
    ranks. DistributedDataParallel averages gradients over ranks, which gives those of the global mean, even when
    ranks hold different numbers of images.

    Args:
        resume_from: totals of the steps of this epoch before `batches`.
        micro_batch_size: images that a rank passes through the network at a time; gradients are accumulated over them.
        max_grad_norm: maximum norm of the gradient; larger gradients are scaled down.
        after_step: called after each step, on every rank; the epoch ends where it returns False.

    Returns:
        The totals of the whole epoch; None if `after_step` ended it.

    Raises:
        UserError: a loss or gradient was not finite; names epoch, step and sample indices.
    """
    network.train()
    metrics = EpochAccumulator(resume_from or EpochTotals(), compute.device)
    guard = NonFiniteGuard(epoch, lag=LAG if compute.device.type == "cuda" else 0)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def totals() -> EpochTotals:
        guard.drain()
        return metrics.totals()

    def recent() -> dict[str, float]:
        return {**guard.recent(), **metrics.recent()}

    for batch in _timed(batches, metrics.add_data_wait):
        optimizer.zero_grad()
        image_sums = _accumulate_gradients(network, batch, compute, label_smoothing, micro_batch_size)
        norm = _clip_gradients(parameters, max_grad_norm)
        guard.add(metrics.steps, batch.indices, image_sums["loss"], norm)
        optimizer.step()
        metrics.update(
            image_sums,
            {"gradient_norm": norm},
            images=len(batch.labels),
            skipped=batch.skipped,
            position=batch.end,
            learning_rate=float(optimizer.param_groups[0]["lr"]),
        )
        schedule.step()
        if not after_step(Step(metrics.steps, totals, recent)):
            return None
    epoch_totals = totals()
    _check_seen(epoch_totals.images, "training")
    return epoch_totals


def _accumulate_gradients(
    network: nn.Module, batch: Batch, compute: Compute, label_smoothing: float, micro_batch_size: int | None
) -> dict[str, Tensor]:
    """Adds the gradient of a batch to that of the parameters; metrics by name, summed over this rank's images.

    Ranks communicate in the last micro-batch alone. All have the same number, as statistics may be synchronized.
    """
    ranks = world_size()
    largest = -(-batch.size // ranks)
    parts = -(-largest // micro_batch_size) if micro_batch_size else 1
    images, labels = (compute.move(each).tensor_split(parts) for each in (batch.images, batch.labels))
    losses, correct = [], []
    for number, (pixels, classes) in enumerate(zip(images, labels, strict=True), 1):
        with nullcontext() if number == parts else _without_communication(network):
            logits = compute.logits(network, pixels)
            loss = nn.functional.cross_entropy(logits, classes, label_smoothing=label_smoothing, reduction="sum")
            (loss * (ranks / batch.size)).backward()
        losses.append(loss.detach())
        correct.append((logits.detach().argmax(1) == classes).sum())
    return {"loss": torch.stack(losses).sum(), "top1": torch.stack(correct).sum()}


def _without_communication(network: nn.Module) -> AbstractContextManager[None]:
    no_sync: Callable[[], AbstractContextManager[None]] = getattr(network, "no_sync", nullcontext)
    return no_sync()


def _clip_gradients(parameters: list[nn.Parameter], max_grad_norm: float | None) -> Tensor:
    """Scales the gradient down to `max_grad_norm` where it is larger; its norm before that."""
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    return norm


def _timed(items: Iterable[Item], add_seconds: Callable[[float], None]) -> Iterator[Item]:
    """The items; `add_seconds` is called with the time that each took to arrive."""
    iterator = iter(items)
    while True:
        started = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            add_seconds(time.perf_counter() - started)
        yield item


class Forward(NamedTuple):
    """A batch that has passed through the network."""

    batch: Batch
    pixels: Tensor
    """uint8 (B, H, W, 3), on the device."""
    labels: Tensor
    """int64 (B,), on the device."""
    logits: Tensor
    """float32 (B, C)."""


def forward_pass(network: nn.Module, batches: Iterable[Batch], compute: Compute) -> Iterator[Forward]:
    """Passes batches through a network, in the mode and under the gradient mode of the caller."""
    for batch in batches:
        labels, pixels = compute.move(batch.labels), compute.move(batch.images)
        yield Forward(batch, pixels, labels, compute.logits(network, pixels))


def evaluation_sums(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Metrics of a batch by name, summed over its images: logits (B, C), labels (B,)."""
    correct = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return {
        "loss": nn.functional.cross_entropy(logits, labels, reduction="sum"),
        "top1": correct[:, 0].sum(),
        "top5": correct.sum(),
        **registered_sums(logits, labels),
    }


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    compute: Compute,
    name: str = "validation",
    observe: Callable[[Tensor, Tensor, Tensor], None] | None = None,
    after_step: Callable[[int], bool] = lambda step: True,
) -> dict[str, float] | None:
    """Mean loss (without label smoothing), top-1 and top-5 accuracy over the images of all ranks.

    Ranks communicate once, after their last batch. `network` is the bare module: the wrapper for training would
    communicate at each batch. With fewer than five classes, top-5 counts all of them.

    Args:
        observe: called with the probabilities (B, C), the labels (B,) and the numbers of the images (B,) of each batch.
        after_step: called with the number of finished steps after each; the evaluation ends where it returns False.

    Returns:
        ``NAME/loss``, ``NAME/top1``, ``NAME/top5`` (fractions), ``NAME/skipped_images`` (damaged images); None if
        `after_step` ended it.

    Raises:
        UserError: no image could be decoded; or a registered metric is no finite sum.
    """
    network.eval()
    image_sums = NamedSums(compute.device, ("loss", "top1", "top5", *METRICS))  # also on a rank without batches
    images = skipped = 0
    for step, (batch, _, labels, logits) in enumerate(forward_pass(network, batches, compute), 1):
        image_sums.update(evaluation_sums(logits, labels))
        if observe:
            observe(logits.softmax(1), labels, batch.indices)
        images += len(labels)
        skipped += batch.skipped
        if not after_step(step):
            return None
    own = image_sums.read()
    *totals, all_images, all_skipped = sum_over_ranks([*own.values(), images, skipped], compute.device)
    _check_seen(all_images, name)
    means = {metric: total / all_images for metric, total in zip(own, totals, strict=True)}
    check_registered(means)
    return {**{f"{name}/{metric}": mean for metric, mean in means.items()}, f"{name}/skipped_images": all_skipped}


def warm_up_ddp_buckets(network: nn.Module, images: int, size: int, compute: Compute) -> None:
    """Runs a backward pass that changes nothing, after which DistributedDataParallel has its final gradient buckets.

    It rebuilds its buckets after the first step, in the order in which gradients become ready. A gradient's place in a
    bucket decides in which order more than two ranks add it up, and so its last bits: the first step of a resumed run
    would use other buckets than the same step of a run that was never interrupted.

    Args:
        images: number of images of this rank.
        size: their side in pixels.
    """
    network.train()
    restore = remember_statistics(network)
    pixels = torch.zeros((images, size, size, 3), dtype=torch.uint8, device=compute.device)
    compute.logits(network, pixels).sum().backward()
    network.zero_grad()
    restore()


def gradient_wait_fraction(network: nn.Module) -> float:
    """Fraction of a step that communication of gradients takes beyond the backward pass; 0 for one rank.

    Measured by DistributedDataParallel in the first steps and in every hundredth.
    """
    found = communication_times(network)
    if found is None:
        return 0.0
    names = ("comm_time", "compute_comm_overlap_time", "compute_time")
    sent, hidden, backward = (float(found.get(f"avg_backward_{name}", 0)) for name in names)
    waiting, forward = max(0.0, sent - hidden), float(found.get("avg_forward_compute_time", 0))
    return waiting / max(1.0, forward + backward + waiting)


@torch.no_grad()
def recompute_batch_stats(network: nn.Module, batches: Iterable[Batch], compute: Compute) -> None:
    """Updates the running statistics of a network with averaged weights, by passing batches through it."""
    network.train()
    for _ in forward_pass(network, batches, compute):
        pass


def broadcast_running_stats(network: nn.Module) -> None:
    """Copies the running statistics of rank 0 to all ranks, which have statistics of their own while they train."""
    if world_size() > 1:
        for value in _statistics(network):
            dist.broadcast(value, src=0)


def remember_statistics(network: nn.Module) -> Callable[[], None]:
    """A function that restores the running statistics of a network to what they are now."""
    remembered = [(value, value.clone()) for value in _statistics(network)]

    @torch.no_grad()
    def restore() -> None:
        for value, before in remembered:
            value.copy_(before)

    return restore


def _statistics(network: nn.Module) -> list[Tensor]:
    """Persistent buffers: running statistics, and constants such as the pixels' mean. (Filters are buffers that are not
    stored.)"""
    parameters = dict(network.named_parameters())
    return [value for name, value in network.state_dict().items() if name not in parameters]


def _check_seen(images: float, name: str) -> None:
    if images == 0:
        raise UserError(f"every {name} image is damaged and was skipped: 'phasecollapse verify' says what is wrong")
