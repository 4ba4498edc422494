"""Steps 3 to 5 of a block: standardize each channel, project channels onto others, normalize each position.

Features are rows of a matrix (n, F): n = H·W·B positions, and the numbers of a position: the real parts of all
channels, then the imaginary parts of a range of channels. The others are real (after a phase collapse, say), and cost
no multiplication by an imaginary part that is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.batch_stats import EPSILON, MOMENTUM, joined_moments, moments
from pipeline.runtime.activation_checkpointing import is_recomputing
from pipeline.runtime.collectives import all_reduce, world_size

SMALLEST_NORM = 1e-12
"""Norm across channels from which on a position is normalized."""


def orthonormal(out_channels: int, in_channels: int, complex_entries: bool = True) -> Tensor:
    """A random matrix with orthonormal rows, W Wᴴ = 1 (columns where out > in): (2, out, in) reals, or (1, out, in)."""
    if torch.get_default_device().type == "meta":  # has shapes alone; to find them, torch would import for a second
        return torch.empty(1 + complex_entries, out_channels, in_channels)
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
        part = slice(self.imaginary.start, self.imaginary.stop)
        if not self.standardize:
            return _product(features, self.weight, part)
        if not self.training:
            scaled = self.weight * torch.rsqrt(EPSILON + self.running_var)
            mean = torch.cat([self.running_mean[0], self.running_mean[1, part]])
            return _product(features, scaled, part, -mean)
        y, mean, variance = _StandardizedProduct.apply(
            features, self.weight, part, self.synchronized and world_size() > 1
        )
        if is_recomputing():
            return y
        with torch.no_grad():
            kept = 1 - MOMENTUM
            self.running_mean.mul_(kept)
            self.running_mean[0].add_(mean[: self.in_channels], alpha=MOMENTUM)
            self.running_mean[1, part].add_(mean[self.in_channels :], alpha=MOMENTUM)
            self.running_var.mul_(kept).add_(variance, alpha=MOMENTUM)
        return y

    def multiply_adds(self) -> int:
        """Real multiplications with an addition, at one position."""
        return len(self.weight) * self.out_channels * (self.in_channels + len(self.imaginary))


def _as_real(weight: Tensor, part: slice) -> Tensor:
    """A complex P_j (2, out, in) as one real matrix (2·out, F) for features whose channels `part` are complex."""
    real, imaginary = weight
    rows = [torch.cat([real, -imaginary[:, part]], dim=1), torch.cat([imaginary, real[:, part]], dim=1)]
    return torch.cat(rows)


def _product(x: Tensor, weight: Tensor, part: slice, offset: Tensor | None = None) -> Tensor:
    """P_j·(x + offset) for each row of x (n, F), in x's precision: (n, 2·out). A real P_j acts on both parts alone."""
    channels = weight.shape[2]
    if len(weight) == 2:
        terms = [(x, offset, _as_real(weight, part))]
    else:
        offsets = (None, None) if offset is None else (offset[:channels], offset[channels:])
        terms = [(x[:, :channels], offsets[0], weight[0]), (x[:, channels:], offsets[1], weight[0][:, part])]
    products = [
        torch.mm(values, matrix.to(x.dtype).T)
        if constant is None
        else torch.addmm((matrix @ constant.to(matrix.dtype)).to(x.dtype), values, matrix.to(x.dtype).T)
        for values, constant, matrix in terms
    ]
    return products[0] if len(products) == 1 else torch.cat(products, dim=1)


def _by_features(g: Tensor, weight: Tensor, part: slice) -> Tensor:
    """The derivative by x of Σ g·P_jx: (n, 2·out) → (n, F)."""
    if len(weight) == 2:
        return g @ _as_real(weight, part)
    real, imaginary = g.chunk(2, dim=1)
    return torch.cat([real @ weight[0], imaginary @ weight[0][:, part]], dim=1)


def _by_weight(g: Tensor, x: Tensor, like: Tensor, part: slice) -> Tensor:
    """The derivative by P_j of Σ g·P_jx, in shape and precision `like` P_j itself."""
    channels, result = like.shape[2], torch.empty_like(like)
    if len(like) == 1:
        real, imaginary = g.chunk(2, dim=1)
        result[0] = real.T @ x[:, :channels]
        result[0][:, part] += imaginary.T @ x[:, channels:]
        return result
    real, imaginary = (g.T @ x).chunk(2)
    result[0] = real[:, :channels]
    result[0][:, part] += imaginary[:, channels:]
    result[1] = imaginary[:, :channels]
    result[1][:, part] -= real[:, channels:]
    return result


class _StandardizedProduct(torch.autograd.Function):
    """y = P·(x − mean)/√(ε + variance) with the statistics of the batch; also returns the mean and unbiased variance.

    With A = P/deviation, y = A·x − A·mean: features are read and never copied. Backward, for g = ∂loss/∂y less its
    mean over positions (which is what subtracting the mean of x does to it),

        ∂loss/∂P = Σ g·xᵀ/deviation        ∂loss/∂x = Aᵀ·g + 2/n·(x − mean)·∂loss/∂variance

    Moments are float32 at least: bfloat16 has 8 bits, too few for sums over positions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, part: slice, synchronized: bool) -> tuple[Tensor, Tensor, Tensor]:
        count: int | Tensor = len(x)
        unbiased: float | Tensor = len(x) / max(1, len(x) - 1)
        mean, variances = moments(x)
        if synchronized:
            count, mean, variances = joined_moments(len(x), mean, variances)
            unbiased = count / (count - 1)
        channels = weight.shape[2]
        variance = variances[:channels].clone()
        variance[part] += variances[channels:]
        inverse = torch.rsqrt(EPSILON + variance)
        y = _product(x, (weight * inverse).to(x.dtype), part, -mean)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.part, ctx.count, ctx.synchronized = part, count, synchronized
        variance = variance * unbiased
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        own = gradients[0].sum(0, dtype=mean.dtype)
        shift = (all_reduce(own) if ctx.synchronized else own) / ctx.count
        g = gradients[0] - shift.to(x.dtype)
        weight_gradient = _by_weight(g, x, weight, ctx.part)
        if ctx.synchronized:
            # The worker's own part of the sum over all rows, of g with x less the mean of all.
            rows = x.sum(0, dtype=mean.dtype)
            weight_gradient += _by_weight(shift[None], rows[None], weight, ctx.part)
            weight_gradient -= _by_weight(own[None], mean[None], weight, ctx.part)
        by_channel = (weight_gradient * weight).sum((0, 1)).to(mean.dtype)
        if ctx.synchronized:
            by_channel = all_reduce(by_channel)
        # of ½·variance: −½·deviation⁻³·2, over n positions
        slope = -by_channel * inverse**3 / ctx.count
        slope = torch.cat([slope, slope[ctx.part]])
        x_gradient = _by_features(g, (weight * inverse).to(x.dtype), ctx.part)
        x_gradient.add_((-slope * mean).to(x.dtype)).addcmul_(x, slope.to(x.dtype))
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
