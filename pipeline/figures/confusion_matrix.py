"""The confusion matrix of an evaluation, for 2 to 1,000 classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_prep.maintain.drawing import INK
from pipeline.figures import style
from pipeline.metrics.report import EvaluationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_NUMBERS, MOST_NAMES = 20, 50
"""Classes up to which each cell has its number, and each class its name."""
MOST_CELLS = 256
"""Rows and columns of a larger matrix: each cell is then the largest value of a square of classes."""
PAIRS = 16
"""Most frequent confusions that are named beside a matrix without names."""


def draw(result: EvaluationReport) -> Figure:
    """The confusion matrix of the classes that have images, each row in percent of its class, with names and numbers
    where there is room; otherwise with the names of the most frequent confusions beside it."""
    rows = [number for number, row in enumerate(result.confusion) if sum(row)]
    counts = np.array(result.confusion, np.float64)[rows].reshape(len(rows), len(result.confusion))
    shares = 100 * counts / counts.sum(1, keepdims=True)
    shown = [one for one in result.classes if one.images]
    few = shares.shape[1] <= MOST_NAMES and len(shown) == len(rows)
    figure = _named(shares, result) if few else _large(shares, result)
    title = f"Top-1 {100 * result.top1:.2f} % of {result.images:,} {result.split} images"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _named(shares: np.ndarray, result: EvaluationReport) -> Figure:
    count, columns = shares.shape
    width, lines, size = (22, 3, 8) if columns <= MOST_NUMBERS else (30, 1, 7)
    names = {one.id: style.name(one.name, width, lines) for one in result.classes}
    side = max(0.24 if columns > MOST_NUMBERS else 0.45, 3 / columns) * columns
    room = 0.075 * max((len(line) for name in names.values() for line in name.split("\n")), default=0)
    figure = style.new_figure(side + room + 1.5, side * max(count, 2) / columns + room + 1.1)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="% of the images of the class")
    axes.set(xlabel="predicted class", ylabel="class")
    axes.set_yticks(range(count), [names[one.id] for one in result.classes if one.images], fontsize=size)
    if len(result.classes) == columns:  # otherwise the network has classes that the data set lacks
        axes.set_xticks(range(columns), list(names.values()), rotation=90, fontsize=size)
    else:
        axes.set_xlabel("number of the predicted class")
    if columns <= MOST_NUMBERS:
        _write_numbers(axes, shares)
    return figure


def _write_numbers(axes: Axes, shares: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
        value = shares[row, column]
        color = "white" if value > 50 else INK
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)


def _large(shares: np.ndarray, result: EvaluationReport) -> Figure:
    from matplotlib.colors import PowerNorm

    count, columns = shares.shape
    figure = style.new_figure(11.5, 6.2)
    axes, listed = figure.subplots(1, 2, width_ratios=(1.5, 1))
    picture = axes.imshow(
        _largest_of_squares(shares),
        cmap="Blues",
        norm=PowerNorm(0.5, 0, 100),
        interpolation="nearest",
        extent=(-0.5, columns - 0.5, count - 0.5, -0.5),
    )
    figure.colorbar(picture, ax=axes, shrink=0.8, label="% of the images of the class", ticks=[0, 1, 5, 20, 50, 100])
    axes.set(xlabel="number of the predicted class", ylabel="number of the class")
    pairs = _most_frequent(result)
    listed.barh(range(len(pairs)), [share for share, _ in pairs], color=style.COLORS[0], height=0.7)
    listed.set_yticks(range(len(pairs)), [style.name(text, 44, 2) for _, text in pairs], fontsize=7)
    listed.set(xlabel="% of the images of the class", title="Most frequent confusions", ylim=(max(len(pairs), 1), -1))
    return figure


def _largest_of_squares(shares: np.ndarray) -> np.ndarray:
    """The same matrix, or the largest values of squares of it, so that single cells stay visible."""
    size = -(-max(shares.shape) // MOST_CELLS)
    rows, columns = (-(-side // size) * size for side in shares.shape)
    padded = np.zeros((rows, columns))
    padded[: shares.shape[0], : shares.shape[1]] = shares
    return padded.reshape(rows // size, size, columns // size, size).max((1, 3))


def _most_frequent(result: EvaluationReport) -> list[tuple[float, str]]:
    """The most frequent confusions: percent of the images of the class, and both names."""
    found = [
        (100 * one.most_confused / one.images, f"{one.name} → {one.taken_for}")
        for one in result.classes
        if one.taken_for is not None
    ]
    return sorted(found, key=lambda pair: -pair[0])[:PAIRS]
