"""One epoch of training, one evaluation: plain PyTorch, on one device or on one rank of several.

Losses and counts are summed on the device and read when somebody asks for them, so that the host never waits for a
GPU at a step. Over ranks they are summed then, too: ranks may see different numbers of batches, each image counts once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data_prep.common.errors import UserError
from pipeline.metrics.epoch import EpochAccumulator, EpochTotals
from pipeline.metrics.nonfinite import NonFiniteGuard
from pipeline.runtime.collectives import sum_over_ranks, world_size

Precision = Literal["float32", "bfloat16"]
LAG = 8
"""Steps after which a loss is looked at on a GPU: by then it has long been computed, so nothing waits for it."""

Item = TypeVar("Item")


class Batch(Protocol):
    """This rank's part of a global batch."""

    @property
    def images(self) -> Tensor:
        """Pixels, uint8 (b, H, W, 3)."""

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 (b,)."""

    @property
    def indices(self) -> Tensor:
        """Which samples of the split these are, int64 (b,)."""

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
        """Class scores in float32, (b, classes), whatever precision the layers compute in."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return network(images).float()

    def move(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; from pinned memory, without waiting for the copy."""
        return tensor.to(self.device, non_blocking=True)


@dataclass(frozen=True)
class Step:
    """A step of training that is done."""

    number: int
    """In its epoch, counted from 1."""
    totals: Callable[[], EpochTotals]
    """The sums of the epoch so far, over all ranks, each of which has to ask. Raises UserError if a loss of the steps
    so far is not finite: what is saved after it is good."""
    recent: Callable[[], dict[str, float]]
    """What the steps since the last call came to on this rank; waits for nobody. On a GPU, losses and norms are those
    of `LAG` steps before."""


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
        resume_from: what the steps of this epoch before `batches` came to.
        micro_batch_size: how many images a rank passes through the network at a time; the gradients of a batch are
            added up over such parts.
        max_grad_norm: what the norm of the gradient is shortened to where it is larger.
        after_step: called after each step, on every rank alike; where it returns False, the epoch is left.

    Returns:
        The sums of the whole epoch; None if it was left.

    Raises:
        UserError: a loss or gradient was not finite; names epoch, step and sample indices.
    """
    network.train()
    meter = EpochAccumulator(resume_from or EpochTotals(), compute.device)
    watch = NonFiniteGuard(epoch, lag=LAG if compute.device.type == "cuda" else 0)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def totals() -> EpochTotals:
        watch.drain()
        return meter.totals()

    def recent() -> dict[str, float]:
        return {**watch.recent(), **meter.recent()}

    for batch in _timed(batches, meter.add_data_wait):
        optimizer.zero_grad()
        loss_sum, correct = _accumulate(network, batch, compute, label_smoothing, micro_batch_size)
        norm = _gradient_norm(parameters, max_grad_norm)
        watch.add(meter.steps, batch.indices, loss_sum, norm)
        optimizer.step()
        meter.add(
            loss_sum,
            correct,
            norm,
            images=len(batch.labels),
            skipped=batch.skipped,
            position=batch.end,
            learning_rate=float(schedule.get_last_lr()[0]),
        )
        schedule.step()
        if not after_step(Step(meter.steps, totals, recent)):
            return None
    sums = totals()
    _check_seen(sums.images, "training")
    return sums


def _accumulate(
    network: nn.Module, batch: Batch, compute: Compute, label_smoothing: float, micro_batch_size: int | None
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of a batch to that of the parameters; its loss, summed over this rank's images, and its hits.

    Ranks communicate in the last part alone. Each has equally many parts, as statistics may be those of all ranks.
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
    return torch.stack(losses).sum(), torch.stack(correct).sum()


def _without_communication(network: nn.Module) -> AbstractContextManager[None]:
    no_sync: Callable[[], AbstractContextManager[None]] = getattr(network, "no_sync", nullcontext)
    return no_sync()


def _gradient_norm(parameters: list[nn.Parameter], max_grad_norm: float | None) -> Tensor:
    """The norm of the gradient, which is shortened to `max_grad_norm` where it is longer."""
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    if max_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    return norm


def _timed(items: Iterable[Item], waited: Callable[[float], None]) -> Iterator[Item]:
    """The items; `waited` is told how long each took to come."""
    iterator = iter(items)
    while True:
        started = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        finally:
            waited(time.perf_counter() - started)
        yield item


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    compute: Compute,
    name: str = "validation",
    observe: Callable[[Tensor, Tensor], None] | None = None,
    after_step: Callable[[int], bool] = lambda step: True,
) -> dict[str, float] | None:
    """Mean loss (without smoothing), top-1 and top-5 fractions over the images of all ranks.

    Ranks communicate once, after their last batch. `network` is the bare module: the wrapper for training would
    communicate at each batch. With fewer than five classes, top-5 counts all of them.

    Args:
        observe: given the probabilities, (b, classes), and the labels, (b,), of each batch.
        after_step: called with the number of steps done after each; where it returns False, the evaluation is left.

    Returns:
        ``NAME/loss``, ``NAME/top1``, ``NAME/top5``, ``NAME/skipped_images`` (damaged ones); None if it was left.
    """
    network.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=compute.device)  # loss, top-1 hits, top-5 hits
    seen = skipped = 0
    for step, batch in enumerate(batches, 1):
        labels = compute.move(batch.labels)
        logits = compute.logits(network, compute.move(batch.images))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        correct = best == labels[:, None]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        if observe:
            observe(logits.softmax(1), labels)
        sums += torch.stack([loss.double(), correct[:, 0].sum().double(), correct.sum().double()])
        seen += len(labels)
        skipped += batch.skipped
        if not after_step(step):
            return None
    loss_sum, top1, top5, images, skipped_images = sum_over_ranks([*sums.tolist(), seen, skipped], compute.device)
    _check_seen(images, name)
    return {
        f"{name}/loss": loss_sum / images,
        f"{name}/top1": top1 / images,
        f"{name}/top5": top5 / images,
        f"{name}/skipped_images": skipped_images,
    }


def warm_up_ddp_buckets(network: nn.Module, images: int, size: int, compute: Compute) -> None:
    """Takes a step that changes nothing, after which DistributedDataParallel sends gradients in their final grouping.

    It groups them anew after its first step, by the order in which they come. Where a gradient lies in a message
    decides in which order more than two ranks add it up, and so its last bits: a run that starts again in the middle
    would take its first step with another grouping than one that was never interrupted.
    """
    network.train()
    before = [(value, value.clone()) for value in _statistics(network)]
    pixels = torch.zeros((images, size, size, 3), dtype=torch.uint8, device=compute.device)
    compute.logits(network, pixels).sum().backward()
    network.zero_grad()
    with torch.no_grad():
        for value, kept in before:
            value.copy_(kept)


def exposed_comm_fraction(network: nn.Module) -> float:
    """Share of a step in which this rank only waits for others' gradients; 0 for one rank.

    By DistributedDataParallel's own clock, which looks at the first steps and at every hundredth.
    """
    wrapper = getattr(network, "_orig_mod", network)
    if not isinstance(wrapper, DistributedDataParallel):
        return 0.0
    found = wrapper._get_ddp_logging_data()
    names = ("comm_time", "compute_comm_overlap_time", "compute_time")
    sent, hidden, backward = (float(found.get(f"avg_backward_{name}", 0)) for name in names)
    waiting, forward = max(0.0, sent - hidden), float(found.get("avg_forward_compute_time", 0))
    return waiting / max(1.0, forward + backward + waiting)


@torch.no_grad()
def recompute_batch_stats(network: nn.Module, batches: Iterable[Batch], compute: Compute) -> None:
    """Moves the running statistics of a network whose weights are an average, by images that pass through it."""
    network.train()
    for batch in batches:
        compute.logits(network, compute.move(batch.images))


def broadcast_running_stats(network: nn.Module) -> None:
    """Gives every rank the first one's buffers: running statistics are each worker's own while it trains."""
    if world_size() > 1:
        for value in _statistics(network):
            dist.broadcast(value, src=0)


def _statistics(network: nn.Module) -> list[Tensor]:
    """What changes without being learned. Filters, which never change, are buffers but no state."""
    parameters = dict(network.named_parameters())
    return [value for name, value in network.state_dict().items() if name not in parameters]


def _check_seen(images: float, name: str) -> None:
    if images == 0:
        raise UserError(f"every {name} image is damaged and was skipped: 'phasecollapse verify' says what is wrong")
