"""Means and variances over positions and batch, of the images of one worker or of all workers together.

Suffixes of tensors name their axes: R rows (positions of all images), D numbers in a row, B images of a batch, C
channels, H W rows and columns of pixels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.models import kernels
from pipeline.runtime.activation_checkpointing import is_recomputing
from pipeline.runtime.collectives import all_reduce, world_size

EPSILON = 1e-5
"""Added to variances."""
MOMENTUM = 0.1
"""Weight of a batch in the update of running statistics."""


def moments(x_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each column of x (R, D), (D,) each, in float32 at least."""
    if gpu := kernels.of(x_RD):
        return gpu.moments(x_RD)
    if x_RD.device.type != "cpu" or torch.compiler.is_compiling():  # a compiler makes its own loop of plain sums
        precise = x_RD.to(torch.promote_types(x_RD.dtype, torch.float32))
        variance, mean = torch.var_mean(precise, dim=0, correction=0)
        return mean, variance
    # The kernel of batch normalization reads x twice and writes nothing: a tenth of var_mean's time on a CPU. It adds
    # row after row, which loses digits over many; so it is applied to groups of rows, whose moments are then joined.
    groups = next(k for k in range(math.isqrt(len(x_RD)), 0, -1) if len(x_RD) % k == 0)
    rows = x_RD.view(1, len(x_RD) // groups, 1, -1).permute(0, 3, 1, 2)  # channels last
    # The running statistics are not used: their type determines the precision of the moments.
    unused = torch.zeros(2, rows.shape[1], dtype=torch.promote_types(x_RD.dtype, torch.float32), device=x_RD.device)
    means, variances = (m.view(groups, -1) for m in torch.batch_norm_update_stats(rows, unused[0], unused[1], 0.0))
    mean = means.mean(0, dtype=torch.float64).to(means.dtype)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def joined_moments(count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and biased variance of the rows of all workers, from those of this worker.

    The variances are joined by Chan's formula, without a difference of large numbers.
    """
    own = torch.cat([mean.new_full((1,), count), mean, variance])
    gathered = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(gathered, own)
    table = torch.stack(gathered)
    counts, means, variances = table[:, :1], *table[:, 1:].chunk(2, dim=1)
    total = counts.sum()
    joined = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - joined).square())).sum(0) / total
    return total, joined, spread


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization of (B, C, H, W), with the statistics of one worker or of all, on any device.

    torch's SyncBatchNorm refuses CPUs.

    Args:
        channels: C.
        scale, shift: learn γ, learn β.
        synchronized: statistics of the images of all workers together.
    """

    def __init__(self, channels: int, *, scale: bool = True, shift: bool = True, synchronized: bool = False) -> None:
        super().__init__(channels, eps=EPSILON, momentum=MOMENTUM)
        self.synchronized = synchronized
        if not scale:
            self.register_parameter("weight", None)
        if not shift:
            self.register_parameter("bias", None)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not (self.training and self.synchronized and world_size() > 1):
            if self.training and is_recomputing():
                # Copies are updated: what is kept for the derivative must have the same shapes as in the first run.
                copies = (self.running_mean.clone(), self.running_var.clone())  # type: ignore[union-attr]
                return nn.functional.batch_norm(x_BCHW, *copies, self.weight, self.bias, training=True, eps=self.eps)
            return super().forward(x_BCHW)
        precise = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        own = precise.new_full((1,), x_BCHW.numel() / x_BCHW.shape[1])
        total = _Sum.apply(torch.cat([own, precise.sum((0, 2, 3))]))
        count, mean = total[0].detach(), total[1:] / total[0].detach()
        centered = precise - mean[:, None, None]
        variance = _Sum.apply(centered.square().sum((0, 2, 3))) / count
        if not is_recomputing():
            self._move(mean.detach(), variance.detach() * count / (count - 1))
        inverse = torch.rsqrt(EPSILON + variance)
        scale = inverse if self.weight is None else inverse * self.weight
        y = centered * scale[:, None, None]
        return (y if self.bias is None else y + self.bias[:, None, None]).to(x_BCHW.dtype)

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        """Updates the running statistics with those of a batch."""
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), MOMENTUM)  # type: ignore[union-attr]
        self.running_var.lerp_(variance.to(self.running_var.dtype), MOMENTUM)  # type: ignore[union-attr]
        self.num_batches_tracked.add_(1)  # type: ignore[union-attr]


class _Sum(torch.autograd.Function):
    """The sum over all workers; its derivative is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return all_reduce(gradients[0])
