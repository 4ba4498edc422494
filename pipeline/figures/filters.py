"""The filter bank: the low-pass filter and the wavelets of each scale, real and imaginary parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.figures import style
from pipeline.models.wavelets import Octave, angle, filter_bank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE, PERIOD = 11, 32
"""Pixels of a filter that are shown, around its center, and of the grid on which it is computed."""
NAMES = {
    Octave.FULL: "a whole octave",
    Octave.FIRST_HALF: "the first half of an octave",
    Octave.SECOND_HALF: "the second half of an octave",
}


def draw(octaves: Sequence[Octave], angles: int) -> Figure:
    """The filters of a network: a row of real parts and one of imaginary parts for each kind of block.

    Args:
        octaves: of its blocks, in order.
        angles: of its wavelets, L.
    """
    kinds = list(dict.fromkeys(octaves))
    columns = 1 + angles
    figure = style.new_figure(max(5.5, 0.95 * columns + 1.3), 2.5 * len(kinds) + 0.6)
    for axes, octave in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
        axes.imshow(mosaic(octave, angles), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        centers = np.arange(columns) * (SIDE + 1) + (SIDE - 1) / 2
        degrees = [f"ψ, {math.degrees(angle(k, angles)):.4g}°" for k in range(angles)]
        axes.set_xticks(centers, ["φ", *degrees], fontsize=8)
        axes.set_yticks(centers[:2], ["real part", "imaginary part"], fontsize=8, rotation=90, va="center")
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        blocks = _ranges([block for block, each in enumerate(octaves, 1) if each is octave])
        title = f"Block{'s' * (octaves.count(octave) > 1)} {blocks}: {NAMES[octave]}"
        axes.set_title(style.name(title, 14 * columns), pad=8)
    note = f"{SIDE} × {SIDE} pixels of a block's input; red positive, blue negative, each filter on its own scale"
    figure.supxlabel(style.name(note, 14 * columns), fontsize=8)
    return figure


def mosaic(octave: Octave, angles: int) -> np.ndarray:
    """Real parts of φ and ψ_θ side by side, above their imaginary parts, in -1 … 1, with a pixel of NaN between two."""
    bank = filter_bank(octave, angles, PERIOD, PERIOD)
    every = np.concatenate([bank.phi[None].astype(np.complex128), bank.psi])
    middle = np.roll(every, (SIDE // 2, SIDE // 2), (1, 2))[:, :SIDE, :SIDE]
    middle = middle / np.abs(middle).max((1, 2), keepdims=True)
    parts = np.pad(np.stack([middle.real, middle.imag]), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return parts.transpose(0, 2, 1, 3).reshape(2 * (SIDE + 1), -1)[:-1, :-1]


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, those in a row as one: 1–3, 5."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ", ".join(f"{each[0]}–{each[-1]}" if len(each) > 1 else str(each[0]) for each in ranges)
