"""Steps 3 to 5 of a block: standardize each channel, project channels onto others, normalize each position.

Features are rows of a matrix (n, F): n = H·W·B positions, and the real numbers of a position. Which channel a number
belongs to is in an index, so that the order in memory is free: the real part of channel c has index c, its imaginary part
channels + c, and a channel that is real (after a phase collapse) has no second number and costs no multiplication.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

EPSILON = 1e-5
"""Added to variances."""
MOMENTUM = 0.1
"""Share of the batch in running statistics."""
SMALLEST_NORM = 1e-12
"""Norm across channels from which on a position is normalized."""


def orthonormal(out_channels: int, in_channels: int, complex_entries: bool = True) -> Tensor:
    """A random matrix with orthonormal rows, W Wᴴ = 1 (columns where out > in): (2, out, in) reals, or (1, out, in)."""
    tall, narrow = max(out_channels, in_channels), min(out_channels, in_channels)
    dtype = torch.complex128 if complex_entries else torch.float64
    q, _ = torch.linalg.qr(torch.randn(tall, narrow, dtype=dtype))
    weight = (q.mH if out_channels <= in_channels else q).resolve_conj()
    parts = torch.view_as_real(weight).movedim(-1, 0) if complex_entries else weight[None]
    return parts.to(torch.get_default_dtype()).contiguous()


class Projection(nn.Module):
    """P_j after standardization, and before normalization: (n, F) → (n, 2·out), real parts, then imaginary ones.

    Standardization subtracts the complex mean of each channel and divides by √(ε + E|z − mean|²), over positions and batch;
    evaluation uses running statistics. It learns nothing and is folded into the matrix: P_j·(z − mean)/deviation is one
    product with P_j/deviation and one constant row.

    Args:
        index: (F,) place of each number of a position among 2·in: channel, or in + channel for an imaginary part.
        complex_entries: P_j complex, (2, out, in), or one real matrix (1, out, in) for both parts.
        standardize: step 3; without it P_j acts on the features as they are.
        synchronized: statistics of the joined batch of all workers, instead of each worker's own (as published).
    """

    running_mean: Tensor
    running_var: Tensor
    index: Tensor

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        index: Tensor,
        *,
        complex_entries: bool = True,
        standardize: bool = True,
        synchronized: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.standardize, self.synchronized = standardize, synchronized
        self.weight = nn.Parameter(orthonormal(out_channels, in_channels, complex_entries))
        self.register_buffer("index", index, persistent=False)
        if standardize:
            self.register_buffer("running_mean", torch.zeros(2, in_channels))
            self.register_buffer("running_var", torch.ones(in_channels))

    def matrix(self) -> Tensor:
        """P_j as one real matrix (2·out, F)."""
        real = self.weight[0]
        imaginary = self.weight[1] if len(self.weight) == 2 else torch.zeros_like(real)
        columns = torch.cat([torch.cat([real, imaginary]), torch.cat([-imaginary, real])], dim=1)  # (2·out, 2·in)
        return columns.index_select(1, self.index)

    def forward(self, features: Tensor) -> Tensor:
        matrix = self.matrix()
        if not self.standardize:
            return nn.functional.linear(features, matrix.to(features.dtype))
        channel = self.index % self.in_channels
        if not self.training:
            matrix = matrix * torch.rsqrt(EPSILON + self.running_var).index_select(0, channel)
            mean = self.running_mean.reshape(-1).index_select(0, self.index)
            return torch.addmm(-(matrix @ mean).to(features.dtype), features, matrix.to(features.dtype).T)
        y, mean, variance, count = _StandardizedProduct.apply(
            features, matrix, channel, self.in_channels, self.synchronized and _workers() > 1
        )
        with torch.no_grad():
            both = mean.new_zeros(2 * self.in_channels).index_copy(0, self.index, mean).view(2, -1)
            self.running_mean.lerp_(both.to(self.running_mean.dtype), MOMENTUM)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), MOMENTUM)
        return y

    def multiply_adds(self) -> int:
        """Real multiplications with an addition that one position needs: none for the zeros of a real matrix."""
        numbers = 2 if len(self.weight) == 2 else 1
        return len(self.index) * numbers * self.out_channels

    def executed_multiply_adds(self) -> int:
        """Those that are done: a real matrix is multiplied with its zeros."""
        return len(self.index) * 2 * self.out_channels


class _StandardizedProduct(torch.autograd.Function):
    """y = (x − mean)/√(ε + variance) · matrixᵀ with the statistics of the batch; also returns these.

    With A = matrix/deviation, y = x·Aᵀ − A·mean: features are read and never copied. Backward, for g = ∂loss/∂y less its mean
    over positions (which is what subtracting the mean of x does to it),

        ∂loss/∂matrix = gᵀx/deviation        ∂loss/∂x = g·A + 2/n·(x − mean)·∂loss/∂variance

    Moments are float32 at least: bfloat16 has 8 bits, too few for sums over positions.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor, channel: Tensor, channels: int, synchronized: bool
    ) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
        count: int | Tensor = len(x)
        mean, variance = _moments(x)
        if synchronized:
            count, mean, variance = _joined_moments(count, mean, variance)
        variance = variance.new_zeros(channels).index_add(0, channel, variance)
        inverse = torch.rsqrt(EPSILON + variance).index_select(0, channel)
        scaled = matrix * inverse
        y = torch.addmm(-(scaled @ mean.to(scaled.dtype)).to(x.dtype), x, scaled.to(x.dtype).T)
        ctx.save_for_backward(x, matrix, channel, mean, inverse)
        ctx.channels, ctx.count, ctx.synchronized = channels, count, synchronized
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None, None]:
        x, matrix, channel, mean, inverse = ctx.saved_tensors
        total = gradients[0].sum(0, dtype=mean.dtype)
        if ctx.synchronized:
            # Centered with the joined batch's mean; the matrix's gradient stays the worker's own part of the sum.
            joined = _all_reduce(total)
            g = gradients[0] - (joined / ctx.count).to(x.dtype)
            along = (g.T @ x).to(mean.dtype)
            along += torch.outer(joined / ctx.count, x.sum(0, dtype=mean.dtype)) - torch.outer(total, mean)
        else:
            g = gradients[0] - (total / ctx.count).to(x.dtype)
            along = (g.T @ x).to(mean.dtype)
        wide = matrix.to(mean.dtype)
        by_channel = mean.new_zeros(ctx.channels).index_add(0, channel, (along * wide).sum(0))
        if ctx.synchronized:
            by_channel = _all_reduce(by_channel)
        # of ½·variance: −½·deviation⁻³·2, over n positions
        slope = -by_channel.index_select(0, channel) * inverse.to(mean.dtype) ** 3 / ctx.count
        scaled = (matrix * inverse).to(x.dtype)
        x_gradient = torch.addmm((-slope * mean).to(x.dtype), g, scaled).addcmul_(x, slope.to(x.dtype))
        return x_gradient, (along * inverse).to(matrix.dtype), None, None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (biased) of each column of x (n, F), in float32 at least."""
    if torch.compiler.is_compiling():  # a compiler makes its own loop of plain sums
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(precise, dim=0, correction=0)
        return mean, variance
    # The kernel of batch normalization reads x twice and writes nothing: a tenth of var_mean's time on a CPU. It adds up
    # row after row, which loses digits over many; so it runs over groups of rows, and then over the groups' moments.
    groups = next(k for k in range(math.isqrt(len(x)), 0, -1) if len(x) % k == 0)
    rows = x.view(1, len(x) // groups, 1, -1).permute(0, 3, 1, 2)  # channels last
    # Running statistics, of no use here, say in which precision the moments are wanted.
    unused = torch.zeros(2, rows.shape[1], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    means, variances = (m.view(groups, -1) for m in torch.batch_norm_update_stats(rows, *unused, 0.0))
    mean = means.mean(0, dtype=torch.float64).to(means.dtype)
    return mean, variances.mean(0) + (means - mean).square().mean(0)


def _workers() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all_reduce(values: Tensor) -> Tensor:
    result = values.clone()
    dist.all_reduce(result)
    return result


def _joined_moments(count: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean and variance of all workers' rows together (Chan's formula: no difference of large numbers)."""
    own = torch.cat([mean.new_full((1,), count), mean, variance])
    gathered = [torch.empty_like(own) for _ in range(_workers())]
    dist.all_gather(gathered, own)
    table = torch.stack(gathered)
    counts, means, variances = table[:, :1], *table[:, 1:].chunk(2, dim=1)
    total = counts.sum()
    joined = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - joined).square())).sum(0) / total
    return total, joined, spread


def normalize(y: Tensor) -> Tensor:
    """Divides (H, W, B, 2, C) by its norm across channels at each position (step 5): a signal (H, 2, W, B, C)."""
    return _Normalize.apply(y)


class _Normalize(torch.autograd.Function):
    """y/‖y‖, written in the order of axes that the next block reads: a pass over the numbers that is needed anyway.

    Below `SMALLEST_NORM` y is nothing but rounding errors: 0 is returned, and 0 is the derivative.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        precise = torch.promote_types(y.dtype, torch.float32)
        norm = torch.linalg.vector_norm(y.flatten(3), dim=3, dtype=precise)
        inverse = norm.reciprocal().masked_fill(norm < SMALLEST_NORM, 0).to(y.dtype)[:, None, :, :, None]
        output = (y.permute(0, 3, 1, 2, 4) * inverse).contiguous()
        ctx.save_for_backward(output, inverse)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        output, inverse = ctx.saved_tensors
        precise = torch.promote_types(output.dtype, torch.float32)
        along = (gradients[0] * output).sum((1, 4), keepdim=True, dtype=precise).to(output.dtype)
        return (torch.addcmul(gradients[0], output, along, value=-1) * inverse).permute(0, 2, 3, 1, 4)
