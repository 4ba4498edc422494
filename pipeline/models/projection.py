"""Steps 3 to 5 of a block: standardize each channel, project channels onto others, normalize each position.

Features are rows of a matrix (n, F): n = H·W·B positions, and the numbers of a position: the real parts of all
channels, then the imaginary parts of a range of channels. The others are real (after a phase collapse, say), and cost
no multiplication by an imaginary part that is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.statistics import EPSILON, MOMENTUM, all_reduce, joined_moments, moments, workers

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

    Standardization subtracts the complex mean of each channel and divides by √(ε + E|z − mean|²), over positions and
    batch; evaluation uses running statistics. It learns nothing and is folded into the matrix: P_j·(z − mean)/deviation
    is one product with P_j/deviation and one constant row.

    Args:
        imaginary: the channels, of `in_channels`, that have an imaginary part.
        complex_entries: P_j complex, (2, out, in), or one real matrix (1, out, in) for both parts.
        standardize: step 3; without it P_j acts on the features as they are.
        synchronized: statistics of the joined batch of all workers, instead of each worker's own (as published).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        out_channels: int,
        in_channels: int,
        imaginary: range,
        *,
        complex_entries: bool = True,
        standardize: bool = True,
        synchronized: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.imaginary = in_channels, out_channels, imaginary
        self.standardize, self.synchronized = standardize, synchronized
        self.weight = nn.Parameter(orthonormal(out_channels, in_channels, complex_entries))
        if standardize:
            self.register_buffer("running_mean", torch.zeros(2, in_channels))
            self.register_buffer("running_var", torch.ones(in_channels))

    def forward(self, features: Tensor) -> Tensor:
        dtype, part = features.dtype, slice(self.imaginary.start, self.imaginary.stop)
        if not self.standardize:
            return nn.functional.linear(features, _as_real(self.weight.to(dtype), part))
        if not self.training:
            matrix = _as_real(self.weight * torch.rsqrt(EPSILON + self.running_var), part)
            mean = torch.cat([self.running_mean[0], self.running_mean[1, part]])
            return torch.addmm(-(matrix @ mean).to(dtype), features, matrix.to(dtype).T)
        y, mean, variance, count = _StandardizedProduct.apply(
            features, self.weight, part, self.synchronized and workers() > 1
        )
        with torch.no_grad():
            kept = 1 - MOMENTUM
            self.running_mean.mul_(kept)
            self.running_mean[0].add_(mean[: self.in_channels], alpha=MOMENTUM)
            self.running_mean[1, part].add_(mean[self.in_channels :], alpha=MOMENTUM)
            self.running_var.mul_(kept).add_(variance * (count / (count - 1)), alpha=MOMENTUM)  # unbiased
        return y

    def multiply_adds(self) -> int:
        """Real multiplications with an addition that one position needs: none for the zeros of a real matrix."""
        return len(self.weight) * self.out_channels * (self.in_channels + len(self.imaginary))

    def executed_multiply_adds(self) -> int:
        """Those that are done: a real matrix is multiplied with its zeros."""
        return 2 * self.out_channels * (self.in_channels + len(self.imaginary))


def _as_real(weight: Tensor, part: slice) -> Tensor:
    """P_j (2 or 1, out, in) as one real matrix (2·out, F) for features whose channels `part` have an imaginary part."""
    real = weight[0]
    imaginary = weight[1] if len(weight) == 2 else torch.zeros_like(real)
    rows = [torch.cat([real, -imaginary[:, part]], dim=1), torch.cat([imaginary, real[:, part]], dim=1)]
    return torch.cat(rows)


def _of_real(gradient: Tensor, shape: torch.Size, part: slice, dtype: torch.dtype) -> Tensor:
    """The gradient of P_j, of `shape`, from that of `_as_real`."""
    (to_real_by_real, to_real_by_imaginary), (to_imaginary_by_real, to_imaginary_by_imaginary) = (
        half.split([shape[2], gradient.shape[1] - shape[2]], dim=1) for half in gradient.chunk(2)
    )
    result = gradient.new_empty(shape, dtype=dtype)
    result[0].copy_(to_real_by_real)[:, part] += to_imaginary_by_imaginary
    if len(result) == 2:
        result[1].copy_(to_imaginary_by_real)[:, part] -= to_real_by_imaginary
    return result


class _StandardizedProduct(torch.autograd.Function):
    """y = (x − mean)/√(ε + variance) · Pᵀ with the statistics of the batch; also returns these.

    With A = P/deviation, y = x·Aᵀ − A·mean: features are read and never copied. Backward, for g = ∂loss/∂y less its
    mean over positions (which is what subtracting the mean of x does to it),

        ∂loss/∂P = gᵀx/deviation        ∂loss/∂x = g·A + 2/n·(x − mean)·∂loss/∂variance

    Moments are float32 at least: bfloat16 has 8 bits, too few for sums over positions.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, part: slice, synchronized: bool
    ) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
        count: int | Tensor = len(x)
        mean, variances = moments(x)
        if synchronized:
            count, mean, variances = joined_moments(len(x), mean, variances)
        channels = weight.shape[2]
        variance = variances[:channels].clone()
        variance[part] += variances[channels:]
        inverse = torch.rsqrt(EPSILON + variance)
        scaled = _as_real((weight * inverse).to(x.dtype), part)
        y = torch.addmm(-(scaled @ mean.to(x.dtype)), x, scaled.T)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.part, ctx.count, ctx.synchronized = part, count, synchronized
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        total = gradients[0].sum(0, dtype=mean.dtype)
        own = total
        if ctx.synchronized:
            total = all_reduce(total)
        shift = total / ctx.count
        g = gradients[0] - shift.to(x.dtype)
        along = g.T @ x
        if ctx.synchronized:
            # The matrix's gradient stays the worker's own part of the sum, of features less the joined batch's mean.
            along = along + (torch.outer(shift, x.sum(0, dtype=mean.dtype)) - torch.outer(own, mean)).to(x.dtype)
        weight_gradient = _of_real(along, weight.shape, ctx.part, weight.dtype)
        by_channel = (weight_gradient * weight).sum((0, 1)).to(mean.dtype)
        if ctx.synchronized:
            by_channel = all_reduce(by_channel)
        # of ½·variance: −½·deviation⁻³·2, over n positions
        slope = -by_channel * inverse**3 / ctx.count
        slope = torch.cat([slope, slope[ctx.part]])
        scaled = _as_real((weight * inverse).to(x.dtype), ctx.part)
        x_gradient = torch.addmm((-slope * mean).to(x.dtype), g, scaled).addcmul_(x, slope.to(x.dtype))
        return x_gradient, weight_gradient.mul_(inverse), None, None


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
