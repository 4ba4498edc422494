"""Steps 3 and 4 of a block: standardize each channel, and project the channels onto others.

Suffixes of tensors name their axes:

    R    positions, H·W·B rows of a matrix     D    numbers at a position: the real parts of all I channels, then the
    O I  output and input channels                  imaginary parts of a range of them; the other channels are real
    P    real and imaginary part                    (after a phase collapse, say) and cost no multiplication by zeros
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import kernels
from pipeline.models.batch_stats import EPSILON, MOMENTUM, joined_moments, moments
from pipeline.runtime.activation_checkpointing import is_recomputing
from pipeline.runtime.collectives import all_reduce, world_size


def orthonormal(out_channels: int, in_channels: int, complex_entries: bool = True) -> Tensor:
    """A random matrix with orthonormal rows, W Wᴴ = 1 (columns where O > I): (2, O, I) reals, or (1, O, I)."""
    if torch.get_default_device().type == "meta":  # shapes are enough; torch would import its compiler for a second
        return torch.empty(1 + complex_entries, out_channels, in_channels)
    tall, narrow = max(out_channels, in_channels), min(out_channels, in_channels)
    dtype = torch.complex128 if complex_entries else torch.float64
    q, _ = torch.linalg.qr(torch.randn(tall, narrow, dtype=dtype))
    weight_OI = (q.mH if out_channels <= in_channels else q).resolve_conj()
    weight_POI = torch.view_as_real(weight_OI).movedim(-1, 0) if complex_entries else weight_OI[None]
    return weight_POI.to(torch.get_default_dtype()).contiguous()


class Projection(nn.Module):
    """P_j after standardization, and before normalization: (R, D) → (R, 2·O), real parts, then imaginary ones.

    Standardization subtracts the complex mean of each channel and divides by √(ε + E|z − mean|²), over positions and
    batch; evaluation uses running statistics. It learns nothing and is folded into the matrix: P_j·(z − mean)/deviation
    is one product with P_j/deviation and one constant row.

    Args:
        imaginary: the channels, of `in_channels`, that have an imaginary part.
        complex_entries: P_j complex, (2, O, I), or one real matrix (1, O, I) for both parts.
        standardize: step 3; without it P_j is applied to the features as they are.
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

    def forward(self, features_RD: Tensor) -> Tensor:
        part = slice(self.imaginary.start, self.imaginary.stop)
        if not self.standardize:
            return project(features_RD, self.weight, part)
        if not self.training:
            scaled_POI = self.weight * torch.rsqrt(EPSILON + self.running_var)  # P_j/deviation
            mean_D = torch.cat([self.running_mean[0], self.running_mean[1, part]])
            return project(features_RD, scaled_POI, part, mean_D)
        return self._updated(*standardized_product(features_RD, self.weight, part, self._all_workers()))

    def of_moduli(self, z_SPTFMNBC: Tensor, parts: int, skip: bool) -> Tensor:
        """P_j after phase collapse and standardization, in training on a GPU; see `fused.collapsed_features`."""
        part = slice(self.imaginary.start, self.imaginary.stop)
        return self._updated(*collapsed_product(z_SPTFMNBC, self.weight, parts, skip, part, self._all_workers()))

    def _all_workers(self) -> bool:
        return self.synchronized and world_size() > 1

    def _updated(self, y_RO: Tensor, mean_D: Tensor, variance_I: Tensor) -> Tensor:
        """y, after an update of the running statistics with those of the batch."""
        part = slice(self.imaginary.start, self.imaginary.stop)
        if is_recomputing():
            return y_RO
        with torch.no_grad():
            self.running_mean[0].lerp_(mean_D[: self.in_channels].to(self.running_mean.dtype), MOMENTUM)
            self.running_mean[1, part].lerp_(mean_D[self.in_channels :].to(self.running_mean.dtype), MOMENTUM)
            self.running_var.lerp_(variance_I.to(self.running_var.dtype), MOMENTUM)
        return y_RO

    def multiply_adds(self) -> int:
        """Real multiply-adds at one position."""
        return len(self.weight) * self.out_channels * (self.in_channels + len(self.imaginary))


def project(x_RD: Tensor, weight_POI: Tensor, part: slice, mean_D: Tensor | None = None) -> Tensor:
    """P_j·(x − mean) for each row of x, in the precision of x: (R, D) → (R, 2·O), real parts, then imaginary ones.

    Args:
        x_RD: real parts of I channels, then the imaginary parts of the channels `part`; the others are real.
        weight_POI: P_j complex, (2, O, I), or one real matrix (1, O, I) for both parts.
    """
    return _product(x_RD, joined(weight_POI, part), part, len(weight_POI) == 2, mean_D)


def joined(weight_POI: Tensor, part: slice) -> Tensor:
    """A complex P_j (2, O, I) as one real matrix (2·O, D) for features whose channels `part` are complex; a real P_j
    (1, O, I) as it is, (O, I)."""
    if len(weight_POI) == 1:
        return weight_POI[0]
    real, imaginary = weight_POI
    rows = [torch.cat([real, -imaginary[:, part]], dim=1), torch.cat([imaginary, real[:, part]], dim=1)]
    return torch.cat(rows)


def _product(x_RD: Tensor, matrix: Tensor, part: slice, is_complex: bool, mean_D: Tensor | None) -> Tensor:
    """:func:`project` by a matrix that :func:`joined` has made."""
    if is_complex:
        terms = [(x_RD, mean_D, matrix)]
    else:
        channels = matrix.shape[1]
        means = (None, None) if mean_D is None else (mean_D[:channels], mean_D[channels:])
        terms = [(x_RD[:, :channels], means[0], matrix), (x_RD[:, channels:], means[1], matrix[:, part])]
    products = [
        torch.mm(values, weight.to(x_RD.dtype).T)
        if mean is None
        else torch.addmm((weight @ mean.to(weight.dtype)).to(x_RD.dtype), values, weight.to(x_RD.dtype).T, beta=-1)
        for values, mean, weight in terms
    ]
    return products[0] if len(products) == 1 else torch.cat(products, dim=1)


def standardized_product(
    x_RD: Tensor, weight_POI: Tensor, part: slice, synchronized: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y = P·(x − mean)/√(ε + variance) with the statistics of the batch, see :func:`project`.

    With A = P/deviation, y = A·x − A·mean: features are read and never copied. Backward, for g = ∂loss/∂y less its
    mean over positions (the derivative of subtracting the mean of x),

        ∂loss/∂P = Σ g·xᵀ/deviation        ∂loss/∂x = Aᵀ·g + 2/n·(x − mean)·∂loss/∂variance

    Moments are float32 at least: bfloat16 has 8 bits, too few for sums over positions.

    Args:
        synchronized: use the statistics of the rows of all workers.

    Returns:
        y (R, 2·O); the mean (D,) and the unbiased variance (I,), both without a derivative.
    """
    return _StandardizedProduct.apply(x_RD, weight_POI, part, synchronized)


def plain_standardized_product(x_RD: Tensor, weight_POI: Tensor, part: slice) -> Tensor:
    """Oracle of :func:`standardized_product`, y alone, of one worker."""
    channels = weight_POI.shape[2]
    variance_D = x_RD.var(0, correction=0)
    imaginary_I = torch.zeros_like(variance_D[:channels])
    imaginary_I[part] = variance_D[channels:]
    variance_I = variance_D[:channels] + imaginary_I  # E|z − mean|²
    return project(x_RD - x_RD.mean(0), weight_POI / torch.sqrt(EPSILON + variance_I), part)


class _StandardizedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, weight_POI: Tensor, part: slice, synchronized: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        results, saved, ctx.kept = product_of_batch(x_RD, weight_POI, part, synchronized)
        ctx.save_for_backward(x_RD, *saved)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None]:
        x_RD, *saved = ctx.saved_tensors
        to_x_RD, (slope_D, offset_D), to_weight_POI = product_derivatives(gradients[0], x_RD, saved, *ctx.kept)
        to_x_RD.add_(offset_D.to(x_RD.dtype)).addcmul_(x_RD, slope_D.to(x_RD.dtype))
        return to_x_RD, to_weight_POI, None, None


def product_of_batch(
    x_RD: Tensor, weight_POI: Tensor, part: slice, synchronized: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...], tuple[slice, int | Tensor, bool]]:
    """The results of :func:`standardized_product`, and the tensors and values that `product_derivatives` needs."""
    count: int | Tensor = len(x_RD)
    unbiased: float | Tensor = len(x_RD) / max(1, len(x_RD) - 1)
    mean_D, variance_D = moments(x_RD)
    if synchronized:
        count, mean_D, variance_D = joined_moments(len(x_RD), mean_D, variance_D)
        unbiased = count / (count - 1)
    is_complex, channels = len(weight_POI) == 2, weight_POI.shape[2]
    variance_I = variance_D[:channels].clone()
    variance_I[part] += variance_D[channels:]  # E|z − mean|²
    inverse_I = torch.rsqrt(EPSILON + variance_I)  # 1/deviation
    gpu = kernels.of(x_RD) if is_complex else None
    matrix = (  # P/deviation, kept for the derivative by x
        gpu.join(weight_POI, part, x_RD.dtype, inverse_I)
        if gpu
        else joined((weight_POI * inverse_I).to(x_RD.dtype), part)
    )
    y_RO = _product(x_RD, matrix, part, is_complex, mean_D)
    saved = (weight_POI, mean_D, inverse_I, matrix)
    return (y_RO, mean_D, variance_I * unbiased), saved, (part, count, synchronized)


def product_derivatives(
    to_y_RO: Tensor, x_RD: Tensor, saved: Sequence[Tensor], part: slice, count: int | Tensor, synchronized: bool
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """Derivatives of :func:`standardized_product` by x and P: that by x is the first result + slope·x + offset."""
    weight_POI, mean_D, inverse_I, matrix = saved
    own_O = to_y_RO.sum(0, dtype=mean_D.dtype)
    shift_O = (all_reduce(own_O) if synchronized else own_O) / count
    g_RO = to_y_RO - shift_O.to(x_RD.dtype)
    is_complex, channels = len(weight_POI) == 2, weight_POI.shape[2]
    to_x_RD = _input_gradient(g_RO, matrix, part, is_complex)  # Aᵀ·g
    products = _outer_products(g_RO, x_RD, channels, is_complex)  # Σ g·xᵀ
    if is_complex and not synchronized and (gpu := kernels.of(x_RD)):
        to_weight_POI, slope_D, offset_D = gpu.split(*products, weight_POI, inverse_I, mean_D, part, count)
        return to_x_RD, (slope_D, offset_D), to_weight_POI
    to_weight_POI = _split(products, weight_POI, part)
    if synchronized:
        # The worker's share of the sum over the rows of all workers, of g times x less the mean of all.
        sum_D = x_RD.sum(0, dtype=mean_D.dtype)
        to_weight_POI += _split(_outer_products(shift_O[None], sum_D[None], channels, is_complex), weight_POI, part)
        to_weight_POI -= _split(_outer_products(own_O[None], mean_D[None], channels, is_complex), weight_POI, part)
    by_channel_I = (to_weight_POI * weight_POI).sum((0, 1)).to(mean_D.dtype)
    if synchronized:
        by_channel_I = all_reduce(by_channel_I)
    # 2/n·∂loss/∂variance: ∂deviation⁻¹/∂variance = −½·deviation⁻³, over n positions
    slope_I = -by_channel_I * inverse_I**3 / count
    slope_D = torch.cat([slope_I, slope_I[part]])
    return to_x_RD, (slope_D, -slope_D * mean_D), to_weight_POI.mul_(inverse_I)


def _input_gradient(g_RO: Tensor, matrix: Tensor, part: slice, is_complex: bool) -> Tensor:
    """The derivative of Σ g·P_jx by x, with P_j as :func:`joined` gives it: (R, 2·O) → (R, D)."""
    if is_complex:
        return g_RO @ matrix
    real_RO, imaginary_RO = g_RO.chunk(2, dim=1)
    return torch.cat([real_RO @ matrix, imaginary_RO @ matrix[:, part]], dim=1)


def _outer_products(g_RO: Tensor, x_RD: Tensor, channels: int, is_complex: bool) -> tuple[Tensor, ...]:
    """Σ g·xᵀ over rows: (2·O, D); where P_j is real, of the real parts of both (O, I), and of their imaginary parts."""
    if is_complex:
        return (g_RO.T @ x_RD,)
    real_RO, imaginary_RO = g_RO.chunk(2, dim=1)
    return real_RO.T @ x_RD[:, :channels], imaginary_RO.T @ x_RD[:, channels:]


def _split(products: Sequence[Tensor], like_POI: Tensor, part: slice) -> Tensor:
    """The derivative of Σ g·P_jx by P_j from :func:`_outer_products`, in shape and precision of P_j, `like_POI`."""
    channels, result_POI = like_POI.shape[2], torch.empty_like(like_POI)
    if len(like_POI) == 1:
        result_POI[0] = products[0]
        result_POI[0][:, part] += products[1]
        return result_POI
    real_OD, imaginary_OD = products[0].chunk(2)
    result_POI[0] = real_OD[:, :channels]
    result_POI[0][:, part] += imaginary_OD[:, channels:]
    result_POI[1] = imaginary_OD[:, :channels]
    result_POI[1][:, part] -= real_OD[:, channels:]
    return result_POI


def collapsed_product(
    z_SPTFMNBC: Tensor, weight_POI: Tensor, parts: int, skip: bool, part: slice, synchronized: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`standardized_product` of `collapsed_features`, see there, on a GPU: their derivatives meet in one pass."""
    return _CollapsedProduct.apply(z_SPTFMNBC, weight_POI, parts, skip, part, synchronized)


class _CollapsedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z_SPTFMNBC: Tensor, weight_POI: Tensor, parts: int, skip: bool, part: slice, synchronized: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        x_RD = kernels.load().collapse(z_SPTFMNBC, parts, skip).flatten(0, 4).flatten(1)
        results, saved, ctx.kept = product_of_batch(x_RD, weight_POI, part, synchronized)
        ctx.save_for_backward(z_SPTFMNBC, x_RD, *saved)
        ctx.parts, ctx.skip = parts, skip
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, None, None, None, None]:
        z_SPTFMNBC, x_RD, *saved = ctx.saved_tensors
        to_x_RD, affine, to_weight_POI = product_derivatives(gradients[0], x_RD, saved, *ctx.kept)
        to_z_SPTFMNBC = kernels.load().collapse_back(z_SPTFMNBC, to_x_RD, ctx.parts, ctx.skip, affine)
        return to_z_SPTFMNBC, to_weight_POI, None, None, None, None
