"""Operations with hand-written backward passes, each beside the plain formula that is its oracle.

A function `plain_…` computes the same with torch's own operations and derivatives; the tests compare the values and
gradients of both. What the networks use keeps less memory for the backward pass, or adds in a fixed order.

Suffixes of tensors name their axes, the slowest first:

    B    images of a batch                     C    channels
    H W  rows and columns of pixels            P    real and imaginary part (one entry where a signal is real)
    M N  tiles along rows and columns          S T  rows and columns of pixels in a tile
    F    filters: φ, then ψ at each angle      G    filters after ρ: real parts, then the imaginary parts there are
    R    positions, H·W·B                      D    numbers at a position, G·C
    O I  output and input channels of a projection
    A E  any axis before and after the one that an operation is about
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.models import kernels

SMALLEST_NORM = 1e-12
"""Smallest norm across channels at which a position is normalized."""


def gather_entries(x_AWE: Tensor, index: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """x[:, index]; the backward pass adds in a fixed order, in parallel.

    Args:
        x_AWE: entries along the middle axis.
        index: (n,) entries to copy.
        sources: (rounds, W) for each entry the positions it was copied to, padded with 0.
        weights: (rounds, W) 1 for a position in `sources`, 0 for padding.
    """
    return _GatherEntries.apply(x_AWE, index, sources, weights)


def plain_gather_entries(x_AWE: Tensor, index: Tensor) -> Tensor:
    """Oracle of :func:`gather_entries`."""
    return x_AWE[:, index]


class _GatherEntries(torch.autograd.Function):
    """torch's own backward pass of index_select adds in any order on a GPU, and one entry after the other on a CPU."""

    @staticmethod
    def forward(ctx: Any, x_AWE: Tensor, index: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(sources, weights.to(x_AWE.dtype))
        if gpu := kernels.of(x_AWE):
            return gpu.gather(x_AWE, index[None])
        return x_AWE.index_select(1, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        sources, weights = ctx.saved_tensors
        if gpu := kernels.of(gradients[0]):
            return gpu.gather(gradients[0], sources, weights), None, None, None
        result_AWE = gradients[0].index_select(1, sources[0]) * weights[0]
        for places, weight in zip(sources[1:], weights[1:], strict=True):
            result_AWE.addcmul_(gradients[0].index_select(1, places), weight)
        return result_AWE, None, None, None


def to_frequencies(x_AE: Tensor, matrix: Tensor, parts: int) -> Tensor:
    """matrix @ x for the real matrix of a Fourier transform along the rows of x, which hold `parts` numbers per pixel,
    in the precision of x.

    The mean is not multiplied by the matrix but added at ω = 0: all other frequencies of a constant are sums that
    cancel. Rounded, they would leak into every band-pass coefficient of a column alike, which no average over
    positions removes.
    """
    return _ToFrequencies.apply(x_AE, matrix, parts)


def plain_to_frequencies(x_AE: Tensor, matrix: Tensor) -> Tensor:
    """Oracle of :func:`to_frequencies`."""
    return matrix @ x_AE


class _ToFrequencies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_AE: Tensor, matrix: Tensor, parts: int) -> Tensor:
        ctx.save_for_backward(matrix)
        x_HPE = x_AE.view(-1, parts, x_AE.shape[1])
        if gpu := kernels.of(x_AE):
            centered_HE, mean_E = gpu.center(x_HPE.flatten(1))
            centered_AE, mean_PE = centered_HE.view(x_AE.shape), mean_E.view(parts, -1)
        else:
            mean_PE = x_HPE.mean(0)
            centered_AE = (x_HPE - mean_PE).view(x_AE.shape)
        spectrum_AE = matrix @ centered_AE
        spectrum_AE[:parts].add_(mean_PE, alpha=len(matrix) // 2)  # Σ_h e^{0}·mean at ω = 0
        return spectrum_AE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (matrix,) = ctx.saved_tensors
        return matrix.T @ gradients[0], None, None


def amplitude(z_SPE: Tensor) -> Tensor:
    """√(re² + im² + tiny): (S, 2, …) → (S, …), without a derivative.

    tiny is the smallest normal number. It changes nothing but an exact 0, by which the derivative z/|z| would divide.
    """
    tiny = torch.full((), torch.finfo(z_SPE.dtype).tiny, dtype=z_SPE.dtype, device=z_SPE.device)
    re_SE, im_SE = z_SPE[:, 0], z_SPE[:, 1]
    return torch.addcmul(tiny, re_SE, re_SE).addcmul_(im_SE, im_SE).sqrt_()


def modulus(z_SPE: Tensor) -> Tensor:
    """|z|: (S, 2, …) → (S, 1, …), with derivative z/|z|, and 0 at z = 0."""
    return _Modulus.apply(z_SPE)


def plain_modulus(z_SPE: Tensor) -> Tensor:
    """Oracle of :func:`modulus`."""
    return torch.linalg.vector_norm(z_SPE, dim=1, keepdim=True)


class _Modulus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_SPE: Tensor) -> Tensor:
        r_SPE = amplitude(z_SPE).unsqueeze(1)
        ctx.save_for_backward(z_SPE, r_SPE)
        return r_SPE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        z_SPE, r_SPE = ctx.saved_tensors
        return (gradients[0] / r_SPE) * z_SPE  # ∂loss/∂z = ∂loss/∂|z| · z/|z|


def by_position(z_STFMNBC: Tensor) -> Tensor:
    """A view (M, S, N, T, B, F, C): rows, columns, then what is at each position."""
    return z_STFMNBC.permute(3, 0, 4, 1, 5, 2, 6)


def collapsed_features(z_SPTFMNBC: Tensor, parts: int, skip: bool) -> Tensor:
    """[φ*x, |ψ*x|], or [y, |y|] with `skip`: z (S, 2, T, F, M, N, B, C) → (M, S, N, T, B, G, C).

    The backward pass finds the moduli, and with `skip` the coefficients too, in the features: nothing else is kept.

    Args:
        parts: 1 where x is real: φ*x then is real too, and its imaginary part is left out.
    """
    return _CollapsedFeatures.apply(z_SPTFMNBC, parts, skip)


def plain_collapsed_features(z_SPTFMNBC: Tensor, parts: int, skip: bool) -> Tensor:
    """Oracle of :func:`collapsed_features`."""
    kept_SPTFMNBC = z_SPTFMNBC if skip else z_SPTFMNBC[:, :, :, :1]
    moduli_SPTFMNBC = plain_modulus(z_SPTFMNBC if skip else z_SPTFMNBC[:, :, :, 1:])
    features = [kept_SPTFMNBC[:, 0], moduli_SPTFMNBC[:, 0], kept_SPTFMNBC[:, 1, :, 2 - parts :]]
    return torch.cat([by_position(each) for each in features], dim=5)


class _CollapsedFeatures(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_SPTFMNBC: Tensor, parts: int, skip: bool) -> Tensor:
        ctx.on_gpu = (parts, skip) if (gpu := kernels.of(z_SPTFMNBC)) else None
        if gpu:
            ctx.save_for_backward(z_SPTFMNBC)
            return gpu.collapse(z_SPTFMNBC, parts, skip)
        kept, real = z_SPTFMNBC.shape[3] if skip else 1, 2 - parts
        r_STFMNBC = amplitude(z_SPTFMNBC if skip else z_SPTFMNBC[:, :, :, 1:])
        re_STFMNBC, im_STFMNBC = z_SPTFMNBC[:, 0, :, :kept], z_SPTFMNBC[:, 1, :, real:kept]
        features_MSNTBGC = torch.cat([by_position(each) for each in (re_STFMNBC, r_STFMNBC, im_STFMNBC)], dim=5)
        ctx.save_for_backward(features_MSNTBGC, *([] if skip else [z_SPTFMNBC]))
        ctx.shape, ctx.sections, ctx.real = z_SPTFMNBC.shape, [kept, r_STFMNBC.shape[2], kept - real], real
        return features_MSNTBGC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        features_MSNTBGC, *saved = ctx.saved_tensors
        if ctx.on_gpu:
            return kernels.load().collapse_back(ctx.saved_tensors[0], gradients[0], *ctx.on_gpu), None, None
        (re, r, im), (g_re, g_r, g_im) = (
            f_MSNTBGC.permute(1, 3, 5, 0, 2, 4, 6).split(ctx.sections, dim=2)
            for f_MSNTBGC in (features_MSNTBGC, gradients[0])
        )  # (S, T, F, M, N, B, C) each
        result_SPTFMNBC = features_MSNTBGC.new_empty(ctx.shape)
        to_re, to_im = result_SPTFMNBC.unbind(1)
        if ctx.real:
            to_im[:, :, 0] = 0
        if saved:  # ∂loss/∂z = ∂loss/∂|z| · z/|z|
            to_re[:, :, :1], to_im[:, :, ctx.real : 1] = g_re, g_im
            ratio = torch.div(g_r, r, out=torch.empty_like(to_re[:, :, 1:]))
            torch.mul(saved[0][:, :, :, 1:], ratio.unsqueeze(1), out=result_SPTFMNBC[:, :, :, 1:])
        else:  # ∂loss/∂z = ∂loss/∂y + ∂loss/∂|z| · z/|z|
            ratio = g_r / r
            torch.addcmul(g_re, ratio, re, out=to_re)
            torch.addcmul(g_im, ratio[:, :, ctx.real :], im, out=to_im[:, :, ctx.real :])
        return result_SPTFMNBC, None, None


def normalize(y_HWBPC: Tensor) -> Tensor:
    """y divided by its norm across channels at each position (step 5): (H, W, B, 2, C) → a signal (H, 2, W, B, C).

    The output is written in the order of axes that the next block reads, in the pass over the numbers that is needed
    anyway. A position whose norm is below `SMALLEST_NORM` holds only rounding errors: output and derivative are 0.
    """
    return _Normalize.apply(y_HWBPC)


def plain_normalize(y_HWBPC: Tensor) -> Tensor:
    """Oracle of :func:`normalize`, for positions that are normalized."""
    norm_HWB = torch.linalg.vector_norm(y_HWBPC, dim=(3, 4))
    return (y_HWBPC / norm_HWB[..., None, None]).permute(0, 3, 1, 2, 4)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_HWBPC: Tensor) -> Tensor:
        if gpu := kernels.of(y_HWBPC):
            output_HPWBC, inverse_R = gpu.normalize(y_HWBPC, SMALLEST_NORM)
            ctx.save_for_backward(output_HPWBC, inverse_R)
            return output_HPWBC
        precise = torch.promote_types(y_HWBPC.dtype, torch.float32)
        norm_HWB = torch.linalg.vector_norm(y_HWBPC.flatten(3), dim=3, dtype=precise)
        inverse_HWB = norm_HWB.reciprocal().masked_fill(norm_HWB < SMALLEST_NORM, 0).to(y_HWBPC.dtype)
        inverse_HPWBC = inverse_HWB[:, None, :, :, None]
        output_HPWBC = (y_HWBPC.permute(0, 3, 1, 2, 4) * inverse_HPWBC).contiguous()
        ctx.save_for_backward(output_HPWBC, inverse_HPWBC)
        return output_HPWBC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        output_HPWBC, inverse_HPWBC = ctx.saved_tensors
        if gpu := kernels.of(output_HPWBC):
            return gpu.normalize_back(gradients[0], output_HPWBC, inverse_HPWBC)
        precise = torch.promote_types(output_HPWBC.dtype, torch.float32)
        # ∂loss/∂y = (g − ŷ·⟨g, ŷ⟩)/‖y‖ with ŷ = y/‖y‖
        along_HPWBC = (gradients[0] * output_HPWBC).sum((1, 4), keepdim=True, dtype=precise).to(output_HPWBC.dtype)
        to_y_HPWBC = torch.addcmul(gradients[0], output_HPWBC, along_HPWBC, value=-1) * inverse_HPWBC
        return to_y_HPWBC.permute(0, 2, 3, 1, 4)
