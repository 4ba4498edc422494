"""One epoch of training, one evaluation: plain PyTorch, on one device or on one rank of several.

Losses and counts are summed on the device and read once at the end of an epoch, so that the host never waits for a
GPU at a step. Over ranks they are summed once too: ranks may see different numbers of batches, each image counts once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data_prep.errors import UserError

Precision = Literal["float32", "bfloat16"]
LAG = 8
"""Steps after which a loss is looked at on a GPU: by then it has long been computed, so nothing waits for it."""


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


def train_epoch(
    network: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    epoch: int,
    compute: Compute,
    label_smoothing: float = 0.0,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:
    """Trains on each of `batches` once; `on_step` is called with the number of steps done after each.

    Each rank's loss is the sum over its images divided by the *global* batch's size and multiplied by the number of
    ranks. DistributedDataParallel averages gradients over ranks, which gives those of the global mean, even when
    ranks hold different numbers of images.

    Returns:
        ``train/loss`` (mean over the epoch's images, smoothing included), ``train/top1`` (fraction, during training),
        ``train/images_per_second`` (over all ranks), ``train/skipped_images`` (damaged ones), ``learning_rate`` (of the
        last step).

    Raises:
        UserError: a loss was not finite; names epoch, step and sample indices.
    """
    network.train()
    ranks = _world_size()
    watch = LossWatch(epoch, lag=LAG if compute.device.type == "cuda" else 0)
    sums = torch.zeros(2, dtype=torch.float64, device=compute.device)  # loss, hits
    seen = skipped = 0
    rate = float(schedule.get_last_lr()[0])
    started = time.perf_counter()
    for step, batch in enumerate(batches):
        labels = compute.move(batch.labels)
        logits = compute.logits(network, compute.move(batch.images))
        loss_sum = nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="sum")
        optimizer.zero_grad()
        (loss_sum * (ranks / batch.size)).backward()
        watch.add(step, batch.indices, loss_sum)
        optimizer.step()
        rate = float(schedule.get_last_lr()[0])
        schedule.step()
        with torch.no_grad():
            hits = (logits.argmax(1) == labels).sum()
            sums += torch.stack([loss_sum.double(), hits.double()])
        seen += len(labels)
        skipped += batch.skipped
        on_step(step + 1)
    watch.drain()
    # Reading the sums waits for the device, so the clock is read after them.
    own = [*sums.tolist(), seen, skipped, time.perf_counter() - started]
    loss, top1, images, skipped_images, seconds = _sum_over_ranks(own, compute.device)
    _check_seen(images, "training")
    return {
        "train/loss": loss / images,
        "train/top1": top1 / images,
        "train/images_per_second": images * ranks / seconds,
        "train/skipped_images": skipped_images,
        "learning_rate": rate,
    }


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    compute: Compute,
    name: str = "validation",
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:
    """Mean loss (without smoothing), top-1 and top-5 fractions over the images of all ranks.

    Ranks communicate once, after their last batch. `network` is the bare module: the wrapper for training would
    communicate at each batch. With fewer than five classes, top-5 counts all of them.

    Returns:
        ``NAME/loss``, ``NAME/top1``, ``NAME/top5``, ``NAME/skipped_images`` (damaged ones).
    """
    network.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=compute.device)  # loss, top-1 hits, top-5 hits
    seen = skipped = 0
    for step, batch in enumerate(batches):
        labels = compute.move(batch.labels)
        logits = compute.logits(network, compute.move(batch.images))
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss.double(), hits[:, 0].sum().double(), hits.sum().double()])
        seen += len(labels)
        skipped += batch.skipped
        on_step(step + 1)
    loss_sum, top1, top5, images, skipped_images = _sum_over_ranks([*sums.tolist(), seen, skipped], compute.device)
    _check_seen(images, name)
    return {
        f"{name}/loss": loss_sum / images,
        f"{name}/top1": top1 / images,
        f"{name}/top5": top5 / images,
        f"{name}/skipped_images": skipped_images,
    }


def share_buffers(network: nn.Module) -> None:
    """Gives every rank the first one's buffers: running statistics are each worker's own while it trains."""
    if _world_size() > 1:
        parameters = dict(network.named_parameters())
        for name, value in network.state_dict().items():  # filters, which never change, are buffers but no state
            if name not in parameters:
                dist.broadcast(value, src=0)


class LossWatch:
    """Stops a run whose loss is no longer finite, and says in which step and on which images it happened.

    A loss is copied to the host in the background and looked at `lag` steps later: looking at once would make the host
    wait for a GPU at every step. What the network learned in between is lost with the run.
    """

    def __init__(self, epoch: int, lag: int) -> None:
        self.epoch = epoch
        self.lag = lag
        self._pending: deque[tuple[int, Tensor, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, indices: Tensor, loss: Tensor) -> None:
        """Notes the loss of a step; raises UserError if one that is `lag` steps old is not finite."""
        event = None
        value = loss.detach()
        if value.is_cuda:
            value = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, indices, value, event))
        if len(self._pending) > self.lag:
            self._check()

    def drain(self) -> None:
        """Looks at all that is left; raises UserError if one is not finite."""
        while self._pending:
            self._check()

    def _check(self) -> None:
        step, indices, value, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        if not value.isfinite():
            samples = ", ".join(str(index) for index in indices.tolist()[:16])
            more = f" and {len(indices) - 16} more" if len(indices) > 16 else ""
            raise UserError(
                f"the loss became {value.item()} in epoch {self.epoch}, step {step} (training images {samples}{more}): "
                "lower optimizer.learning_rate or lengthen optimizer.warmup_epochs"
            )


def _check_seen(images: float, name: str) -> None:
    if images == 0:
        raise UserError(f"every {name} image is damaged and was skipped: 'phasecollapse verify' says what is wrong")


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _sum_over_ranks(own: list[float], device: torch.device) -> list[float]:
    """Each of these numbers, added up over ranks."""
    if _world_size() == 1:
        return own
    total = torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()
