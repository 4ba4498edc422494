"""Steps 3 and 4 of a block: standardize each channel, and project the channels onto others.

Suffixes of tensors name their axes:

    R    positions, H·W·B rows of a matrix     D    numbers at a position: the real parts of all I channels, then the
    O I  output and input channels                  imaginary parts of a range of them; the other channels are real
    P    real and imaginary part                    (after a phase collapse, say) and cost no multiplication by zeros
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import kernels
from pipeline.models.batch_stats import EPSILON, MOMENTUM
from pipeline.models.fused import product_derivatives, product_of_batch, project, standardized_product
from pipeline.runtime.activation_checkpointing import is_recomputing
from pipeline.runtime.collectives import world_size


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
