"""Triton kernels of a block: windows, features, moments, normalization. They do what :mod:`pipeline.models.fused` says.

Each reads what it needs once, computes in float32 (float64 for float64), rounds once, and adds in a fixed order, so
that the same input gives the same bits. Triton's interpreter runs them on a CPU, as the tests do. Axes are named as in
:mod:`pipeline.models.fused`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.models.kernels.matrices import finish_moments, kind_of

TINY = 1e-30
"""Largest modulus that is taken as 0, where its derivative is."""
LARGEST_BLOCK = 1024
"""Numbers that a program computes at a time."""


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _block(size: int, largest: int = LARGEST_BLOCK) -> int:
    return min(largest, triton.next_power_of_2(size))


@triton.jit
def _collapse(
    z, out, S, T, M, N, B, C,
    F: tl.constexpr, REAL: tl.constexpr, SKIP: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)  # one of (M, S, N, T), for a block of (B, C)
    t, n = position % T, (position // T) % N
    s, m = (position // (T * N)) % S, position // (T * N * S)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < B * C
    plane = tl.cast(M * N * B * C, tl.int64)  # numbers of a filter
    start = z + (s * 2 * T + t) * F * plane + (m * N + n) * (B * C) + e
    kept: tl.constexpr = F if SKIP else 1  # filters whose coefficients are features
    first: tl.constexpr = 0 if SKIP else 1  # first filter whose modulus is one
    filters: tl.constexpr = 2 * kept + F - first - REAL
    row = out + (position * B + e // C) * (filters * C) + e % C
    for f in tl.static_range(F):
        re = tl.load(start + f * plane, mask=inside, other=0.0)
        im = tl.load(start + (T * F + f) * plane, mask=inside, other=0.0)
        if f < kept:
            tl.store(row + f * C, re, mask=inside)
            if f >= REAL:
                tl.store(row + (kept + F - first + f - REAL) * C, im, mask=inside)
        if f >= first:
            x, y = re.to(KIND), im.to(KIND)
            tl.store(row + (kept + f - first) * C, tl.sqrt(x * x + y * y).to(re.dtype), mask=inside)


@triton.jit
def _gradient(g, slope, offset, feature, x, c, C, inside, SCALED: tl.constexpr, KIND: tl.constexpr):
    """∂loss/∂x of the values x of a feature: g, and slope·x + offset."""
    result = tl.load(g + feature * C, mask=inside, other=0.0).to(KIND)
    if SCALED:
        a = tl.load(slope + feature * C + c, mask=inside, other=0.0)
        b = tl.load(offset + feature * C + c, mask=inside, other=0.0)
        result += a * x + b
    return result


@triton.jit
def _collapse_back(
    z, g, slope, offset, out, S, T, M, N, B, C, TINY,
    F: tl.constexpr, REAL: tl.constexpr, SKIP: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(0).to(tl.int64)
    t, n = position % T, (position // T) % N
    s, m = (position // (T * N)) % S, position // (T * N * S)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, c = e < B * C, e % C
    plane = tl.cast(M * N * B * C, tl.int64)
    start = (s * 2 * T + t) * F * plane + (m * N + n) * (B * C) + e
    kept: tl.constexpr = F if SKIP else 1
    first: tl.constexpr = 0 if SKIP else 1
    filters: tl.constexpr = 2 * kept + F - first - REAL
    row = g + (position * B + e // C) * (filters * C) + c
    for f in tl.static_range(F):
        at_re, at_im = start + f * plane, start + (T * F + f) * plane
        stored_re = tl.load(z + at_re, mask=inside, other=0.0)
        re, im = stored_re.to(KIND), tl.load(z + at_im, mask=inside, other=0.0).to(KIND)
        to_re, to_im = tl.zeros((BLOCK,), KIND), tl.zeros((BLOCK,), KIND)
        if f < kept:
            to_re = _gradient(row, slope, offset, f, re, c, C, inside, SCALED, KIND)
            if f >= REAL:
                to_im = _gradient(row, slope, offset, kept + F - first + f - REAL, im, c, C, inside, SCALED, KIND)
        if f >= first:
            r = tl.sqrt(re * re + im * im)
            stored_r = r.to(stored_re.dtype).to(KIND)  # as the forward pass rounded it
            to_r = _gradient(row, slope, offset, kept + f - first, stored_r, c, C, inside, SCALED, KIND)
            ratio = tl.where(r > TINY, to_r / tl.maximum(r, TINY), 0.0)  # ∂loss/∂z = ∂loss/∂|z| · z/|z|
            to_re += ratio * re
            to_im += ratio * im
        tl.store(out + at_re, to_re.to(stored_re.dtype), mask=inside)
        tl.store(out + at_im, to_im.to(stored_re.dtype), mask=inside)


def collapse(z_SPTFMNBC: Tensor, parts: int, skip: bool) -> Tensor:
    """`collapsed_features`: (M, S, N, T, B, G, C)."""
    S, _, T, F, M, N, B, C = z_SPTFMNBC.shape
    filters = 3 * F - (2 - parts) if skip else F + parts - 1
    out_MSNTBGC = z_SPTFMNBC.new_empty(M, S, N, T, B, filters, C)
    block = _block(B * C)
    _collapse[(M * S * N * T, triton.cdiv(B * C, block))](
        z_SPTFMNBC, out_MSNTBGC, S, T, M, N, B, C,
        F=F, REAL=2 - parts, SKIP=skip, BLOCK=block, KIND=kind_of(z_SPTFMNBC),
    )  # fmt: skip
    return out_MSNTBGC


def collapse_back(
    z_SPTFMNBC: Tensor, g: Tensor, parts: int, skip: bool, affine: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """∂loss/∂z (S, 2, T, F, M, N, B, C), where ∂loss/∂features is g, and slope·features + offset if `affine` is both.

    Args:
        g: (M, S, N, T, B, G, C), or the same as a matrix (R, D).
        affine: slope (D,) and offset (D,), in float32 at least.
    """
    S, _, T, F, M, N, B, C = z_SPTFMNBC.shape
    out_SPTFMNBC, g = torch.empty_like(z_SPTFMNBC), g.contiguous()
    slope, offset = affine or (g, g)
    block = _block(B * C)
    _collapse_back[(M * S * N * T, triton.cdiv(B * C, block))](
        z_SPTFMNBC, g, slope, offset, out_SPTFMNBC, S, T, M, N, B, C, TINY,
        F=F, REAL=2 - parts, SKIP=skip, SCALED=affine is not None, BLOCK=block, KIND=kind_of(g),
    )  # fmt: skip
    return out_SPTFMNBC


@triton.jit
def _places(R, WB, C, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Where a block of rows (H·W·B) of 2·C numbers is in (H, W, B, 2, C), and in (H, 2, W, B, C)."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, COLS)
    inside = (r < R)[:, None] & (k < 2 * C)[None, :]
    before = r[:, None] * (2 * C) + k[None, :]
    after = ((r // WB)[:, None] * 2 + (k // C)[None, :]) * (WB * C) + (r % WB)[:, None] * C + (k % C)[None, :]
    return r, inside, before, after


@triton.jit
def _normalize(y, out, inverse, R, WB, C, SMALLEST, ROWS: tl.constexpr, COLS: tl.constexpr, KIND: tl.constexpr):
    r, inside, before, after = _places(R, WB, C, ROWS, COLS)
    stored = tl.load(y + before, mask=inside, other=0.0)
    x = stored.to(KIND)
    norm = tl.sqrt(tl.sum(x * x, axis=1))
    scale = tl.where(norm < SMALLEST, 0.0, 1.0 / tl.maximum(norm, SMALLEST))
    tl.store(inverse + r, scale, mask=r < R)
    tl.store(out + after, (x * scale[:, None]).to(stored.dtype), mask=inside)


@triton.jit
def _normalize_back(g, out, inverse, to_y, R, WB, C, ROWS: tl.constexpr, COLS: tl.constexpr, KIND: tl.constexpr):
    r, inside, before, after = _places(R, WB, C, ROWS, COLS)
    stored = tl.load(g + after, mask=inside, other=0.0)
    gradient, unit = stored.to(KIND), tl.load(out + after, mask=inside, other=0.0).to(KIND)
    along = tl.sum(gradient * unit, axis=1)
    scale = tl.load(inverse + r, mask=r < R, other=0.0)
    tl.store(to_y + before, ((gradient - unit * along[:, None]) * scale[:, None]).to(stored.dtype), mask=inside)


def _row_blocks(channels: int) -> tuple[int, int]:
    """Rows and columns of a block of numbers (rows, 2·C)."""
    columns = triton.next_power_of_2(2 * channels)
    return max(1, 4 * LARGEST_BLOCK // columns), columns


def normalize(y_HWBPC: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Step 5, (H, 2, W, B, C), and 1/norm of each position (H·W·B,), 0 where the norm is below `smallest`."""
    H, W, B, _, C = y_HWBPC.shape
    out_HPWBC = y_HWBPC.new_empty(H, 2, W, B, C)
    inverse_R = y_HWBPC.new_empty(H * W * B, dtype=_precise(y_HWBPC))
    rows, columns = _row_blocks(C)
    _normalize[(triton.cdiv(H * W * B, rows),)](
        y_HWBPC.contiguous(), out_HPWBC, inverse_R, H * W * B, W * B, C, smallest,
        ROWS=rows, COLS=columns, KIND=kind_of(y_HWBPC),
    )  # fmt: skip
    return out_HPWBC, inverse_R


def normalize_back(g_HPWBC: Tensor, out_HPWBC: Tensor, inverse_R: Tensor) -> Tensor:
    """∂loss/∂y (H, W, B, 2, C)."""
    H, _, W, B, C = out_HPWBC.shape
    to_y_HWBPC = out_HPWBC.new_empty(H, W, B, 2, C)
    rows, columns = _row_blocks(C)
    _normalize_back[(triton.cdiv(H * W * B, rows),)](
        g_HPWBC.contiguous(), out_HPWBC, inverse_R, to_y_HWBPC, H * W * B, W * B, C,
        ROWS=rows, COLS=columns, KIND=kind_of(out_HPWBC),
    )  # fmt: skip
    return to_y_HWBPC


@triton.jit
def _moments(x, sums, R, D, SPLIT, ROWS: tl.constexpr, COLS: tl.constexpr, KIND: tl.constexpr):
    d, split = tl.program_id(0) * COLS + tl.arange(0, COLS), tl.program_id(1).to(tl.int64)
    inside, end = d < D, tl.minimum(R, (split + 1) * SPLIT)
    shift = tl.load(x + d, mask=inside, other=0.0).to(KIND)
    first, second = tl.zeros((ROWS, COLS), KIND), tl.zeros((ROWS, COLS), KIND)
    for start in range(0, SPLIT, ROWS):
        r = split * SPLIT + start + tl.arange(0, ROWS)
        valid = (r < end)[:, None] & inside[None, :]
        value = tl.load(x + r[:, None] * D + d[None, :], mask=valid, other=0.0).to(KIND)
        value = tl.where(valid, value - shift[None, :], 0.0)
        first += value
        second += value * value
    tl.store(sums + split * 2 * D + d, tl.sum(first, axis=0), mask=inside)
    tl.store(sums + (split * 2 + 1) * D + d, tl.sum(second, axis=0), mask=inside)


def moments(x_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each column, (D,) each: from sums of differences from the first row, of which groups
    of rows are added in float64."""
    R, D = x_RD.shape
    columns, rows = _block(D, 128), 32
    groups = max(1, min(triton.cdiv(R, 4 * rows), LARGEST_BLOCK // triton.cdiv(D, columns)))
    split = triton.cdiv(triton.cdiv(R, groups), rows) * rows
    groups = triton.cdiv(R, split)
    sums = x_RD.new_empty(groups, 2, D, dtype=_precise(x_RD))
    x_RD = x_RD.contiguous()
    _moments[(triton.cdiv(D, columns), groups)](x_RD, sums, R, D, split, ROWS=rows, COLS=columns, KIND=kind_of(x_RD))
    return finish_moments(x_RD[0], sums, R)


@triton.jit
def _copies(
    x, places, used, out, W, E, LENGTH, ROUNDS: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    e, w, a = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1), tl.program_id(2).to(tl.int64)
    inside = e < E
    total = tl.zeros((BLOCK,), KIND)
    for k in tl.static_range(ROUNDS):
        place = tl.load(places + k * W + w)
        if WEIGHTED:
            if tl.load(used + k * W + w) > 0:
                total += tl.load(x + (a * LENGTH + place) * E + e, mask=inside, other=0.0).to(KIND)
        else:
            total += tl.load(x + (a * LENGTH + place) * E + e, mask=inside, other=0.0).to(KIND)
    tl.store(out + (a * W + w) * E + e, total.to(out.dtype.element_ty), mask=inside)


def gather(x_AWE: Tensor, places: Tensor, used: Tensor | None = None) -> Tensor:
    """For each w the sum of entries of x along its middle axis, (A, w, E): x[:, places[0, w]] + x[:, places[1, w]] + …

    Args:
        places: (rounds, w).
        used: the same shape, 0 where a place is not added; None if all are.
    """
    (A, length, E), (rounds, width) = x_AWE.shape, places.shape
    out_AWE = x_AWE.new_empty(A, width, E)
    block = _block(E)
    _copies[(triton.cdiv(E, block), width, A)](
        x_AWE.contiguous(), places, places if used is None else used, out_AWE, width, E, length,
        ROUNDS=rounds, WEIGHTED=used is not None, BLOCK=block, KIND=kind_of(x_AWE),
    )  # fmt: skip
    return out_AWE


@triton.jit
def _center(x, out, mean, H, E, ROWS: tl.constexpr, COLS: tl.constexpr, KIND: tl.constexpr):
    e, h = tl.program_id(0).to(tl.int64) * COLS + tl.arange(0, COLS), tl.arange(0, ROWS)
    inside = (h < H)[:, None] & (e < E)[None, :]
    at = h.to(tl.int64)[:, None] * E + e[None, :]
    stored = tl.load(x + at, mask=inside, other=0.0)
    value = stored.to(KIND)
    average = (tl.sum(value, axis=0) / H).to(stored.dtype)  # rounded: what is subtracted is what is returned
    tl.store(mean + e, average, mask=e < E)
    tl.store(out + at, (value - average.to(KIND)[None, :]).to(stored.dtype), mask=inside)


def center(x_HE: Tensor) -> tuple[Tensor, Tensor]:
    """x less its mean over the first axis, and the mean (E,)."""
    H, E = x_HE.shape
    out_HE, mean_E = torch.empty_like(x_HE), x_HE.new_empty(E)
    rows = triton.next_power_of_2(H)
    columns = max(16, min(256, 8 * LARGEST_BLOCK // rows))
    _center[(triton.cdiv(E, columns),)](x_HE, out_HE, mean_E, H, E, ROWS=rows, COLS=columns, KIND=kind_of(x_HE))
    return out_HE, mean_E
