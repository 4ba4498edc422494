"""Triton kernels for what is small, where a GPU's time is that of launches: matrices of projections, and moments.

They do what :mod:`pipeline.models.projection` and :mod:`pipeline.models.batch_stats` say.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 128
"""Channels that a program computes."""


def kind_of(x: Tensor) -> Any:
    """In what a kernel computes on x."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


@triton.jit
def _join(w, scale, out, OUT, C, D, FIRST, COLS: tl.constexpr, KIND: tl.constexpr):
    row, d = tl.program_id(0), tl.program_id(1) * COLS + tl.arange(0, COLS)
    inside, imaginary_input = d < D, d >= C
    imaginary_output = row >= OUT
    c = tl.where(imaginary_input, d - C + FIRST, d)
    plane = tl.where(imaginary_input, 1, 0) ^ tl.where(imaginary_output, 1, 0)  # of P_j: real or imaginary part
    value = tl.load(w + (plane * OUT + row % OUT) * C + c, mask=inside, other=0.0).to(KIND)
    value *= tl.load(scale + c, mask=inside, other=0.0).to(KIND)
    value = tl.where(imaginary_input & (row < OUT), -value, value)
    tl.store(out + row * D + d, value.to(out.dtype.element_ty), mask=inside)


def join(weight_POI: Tensor, part: slice, dtype: torch.dtype, scale_I: Tensor) -> Tensor:
    """`projection.joined` of a complex P_j·scale: (2·O, D)."""
    _, OUT, C = weight_POI.shape
    D = C + len(range(C)[part])
    out_OD = weight_POI.new_empty(2 * OUT, D, dtype=dtype)
    _join[(2 * OUT, triton.cdiv(D, COLUMNS))](
        weight_POI.contiguous(), scale_I, out_OD, OUT, C, D, part.start, COLS=COLUMNS, KIND=kind_of(weight_POI)
    )
    return out_OD


@triton.jit
def _split(
    products, w, inverse, mean, out, affine, OUT, C, D, FIRST, LAST, COUNT, COLS: tl.constexpr, KIND: tl.constexpr
):
    c = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = c < C
    imaginary = inside & (c >= FIRST) & (c < LAST)  # channels that have an imaginary part
    second = C + c - FIRST  # where it is
    scale = tl.load(inverse + c, mask=inside, other=0.0).to(KIND)
    total = tl.zeros((COLS,), KIND)
    for o in range(OUT):
        at_re, at_im = products + o * D, products + (OUT + o) * D
        re = tl.load(at_re + c, mask=inside, other=0.0).to(KIND)
        re += tl.load(at_im + second, mask=imaginary, other=0.0).to(KIND)
        im = tl.load(at_im + c, mask=inside, other=0.0).to(KIND)
        im -= tl.load(at_re + second, mask=imaginary, other=0.0).to(KIND)
        total += re * tl.load(w + o * C + c, mask=inside, other=0.0).to(KIND)
        total += im * tl.load(w + (OUT + o) * C + c, mask=inside, other=0.0).to(KIND)
        tl.store(out + o * C + c, (re * scale).to(out.dtype.element_ty), mask=inside)
        tl.store(out + (OUT + o) * C + c, (im * scale).to(out.dtype.element_ty), mask=inside)
    slope = -total * scale * scale * scale / COUNT
    tl.store(affine + c, slope, mask=inside)
    tl.store(affine + second, slope, mask=imaginary)
    tl.store(affine + D + c, -slope * tl.load(mean + c, mask=inside, other=0.0), mask=inside)
    tl.store(affine + D + second, -slope * tl.load(mean + second, mask=imaginary, other=0.0), mask=imaginary)


def split(
    products_OD: Tensor, weight_POI: Tensor, inverse_I: Tensor, mean_D: Tensor, part: slice, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `projection.product_derivatives` makes of Σ g·xᵀ (2·O, D): ∂loss/∂P of a complex P_j, slope and offset."""
    (_, OUT, C), D = weight_POI.shape, products_OD.shape[1]
    to_weight_POI, affine = torch.empty_like(weight_POI), mean_D.new_empty(2, D)
    _split[(triton.cdiv(C, COLUMNS),)](
        products_OD, weight_POI.contiguous(), inverse_I, mean_D, to_weight_POI, affine, OUT, C, D, part.start,
        part.stop, count, COLS=COLUMNS, KIND=kind_of(weight_POI),
    )  # fmt: skip
    return to_weight_POI, affine[0], affine[1]


@triton.jit
def _finish(x, sums, mean, variance, GROUPS, R, D, COLS: tl.constexpr):
    d = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = d < D
    first, second = tl.zeros((COLS,), tl.float64), tl.zeros((COLS,), tl.float64)
    for group in range(GROUPS):
        at = sums + group * 2 * D + d
        first += tl.load(at, mask=inside, other=0.0).to(tl.float64)
        second += tl.load(at + D, mask=inside, other=0.0).to(tl.float64)
    first, second = first / R, second / R
    average = tl.load(x + d, mask=inside, other=0.0).to(tl.float64) + first
    tl.store(mean + d, average.to(mean.dtype.element_ty), mask=inside)
    spread = tl.maximum(second - first * first, 0.0)
    tl.store(variance + d, spread.to(variance.dtype.element_ty), mask=inside)


def finish_moments(first_D: Tensor, sums: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each column, (D,) each.

    Args:
        first_D: the first row.
        sums: (groups, 2, D) sums of differences from it, and of their squares.
        rows: their number.
    """
    columns = len(first_D)
    mean_D, variance_D = sums.new_empty(columns), sums.new_empty(columns)
    _finish[(triton.cdiv(columns, COLUMNS),)](first_D, sums, mean_D, variance_D, len(sums), rows, columns, COLS=COLUMNS)
    return mean_D, variance_D
