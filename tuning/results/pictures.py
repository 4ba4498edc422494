"""The pictures of a search: its frontier, the learning curves of its trials, and its trials as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.figures import style
from tuning.results.frontier import Row, on_frontier, shown_error
from tuning.search_folder import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 12
"""With more trials than this, only those on the frontier are named."""
LOGARITHMIC = 10
"""An axis of positive numbers whose largest is more than this many times the smallest is logarithmic."""
COSTS = {
    "multiply_adds": "multiply-adds for one image",
    "parameters": "parameters",
    "seconds": "seconds of training an epoch",
}
"""What errors are drawn against, by field of a row."""
_COLORS = {
    "frontier": style.COLORS[0],
    "completed": "#8a8f98",
    "stopped early": style.COLORS[1],
    "failed": style.COLORS[7],
}


def draw_frontier(rows: Sequence[Row], error_name: str) -> Figure:
    """Error of the completed trials, with intervals, against each of COSTS. The line joins the frontier of error and
    multiply-adds, which those on it are drawn in, too, where they are not the best for their other costs."""
    completed = [row for row in rows if row.status == "completed" and row.error is not None]
    costs = [name for name in COSTS if name != "seconds" or (completed and all(row.seconds for row in completed))]
    best = on_frontier(rows)
    figure = style.new_figure(9.6, 4.4)
    shape = {"width_ratios": [2, *[1] * (len(costs) - 1)]}  # the first has the names
    panels = figure.subplots(1, len(costs), sharey=True, gridspec_kw=shape)
    for place, (axes, cost) in enumerate(zip(panels, costs, strict=True)):
        for row in completed:
            assert row.error is not None
            color = _COLORS["frontier" if row.name in best else "completed"]
            low, high = row.interval or (row.error, row.error)
            at, ends = getattr(row, cost), [[row.error - low], [high - row.error]]
            axes.errorbar(at, row.error, ends, fmt="o", color=color, markersize=4, elinewidth=0.8, capsize=2)
            if place == 0 and (row.name in best or len(completed) <= NAMED):
                axes.annotate(style.name(row.name, 30), (at, row.error), (4, 4), textcoords="offset points", fontsize=7)
        line = sorted((getattr(row, cost), row.error) for row in completed if row.name in best)
        if place == 0:
            axes.plot(*zip(*line, strict=True) if line else ([], []), color=_COLORS["frontier"], label="frontier")
            axes.set_ylabel(f"{shown_error(error_name)}, images held out")
            axes.legend(frameon=False)
        axes.set(xscale="log", xlabel=COSTS[cost])
        _mark_amounts(axes)
        axes.margins(x=0.2, y=0.12)
        style.grid(axes)
        if not completed:
            axes.text(0.5, 0.5, "no trial was completed", ha="center", transform=axes.transAxes)
    return figure


def draw_curves(rows: Sequence[Row], records: Mapping[str, Record], error_name: str) -> Figure:
    """The error of every trial after each epoch; where one was stopped or failed, its curve ends in a mark."""
    best = on_frontier(rows)
    figure = style.new_figure(9.6, 4.6)
    axes = figure.subplots()
    counts: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row.name in best):  # the frontier on top
        errors = records[row.name].errors if row.name in records else {}
        if not errors:
            continue
        kind = "frontier" if row.name in best else row.status
        counts[kind] = counts.get(kind, 0) + 1
        color, epochs = _COLORS.get(kind, _COLORS["completed"]), sorted(errors)
        wide = kind == "frontier"
        axes.plot(epochs, [errors[one] for one in epochs], color=color, linewidth=1.6 if wide else 0.8)
        if row.status in ("stopped early", "failed"):
            axes.plot(epochs[-1], errors[epochs[-1]], "x", color=color, markersize=5)
        elif len(epochs) == 1 or wide:
            axes.plot(epochs[-1], errors[epochs[-1]], "o", color=color, markersize=3.5)
    for kind, count in sorted(
        counts.items(), key=lambda item: list(_COLORS).index(item[0]) if item[0] in _COLORS else 9
    ):
        axes.plot([], [], color=_COLORS.get(kind, _COLORS["completed"]), label=f"{kind}: {count}")
    if counts:
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "no epoch is finished yet", ha="center", transform=axes.transAxes)
    axes.set(xlabel="epoch", ylabel=f"{shown_error(error_name)}, images held out")
    axes.locator_params(axis="x", integer=True)
    style.grid(axes)
    return figure


def draw_coordinates(rows: Sequence[Row], records: Mapping[str, Record]) -> Figure:
    """A line for each completed trial through the values of all settings that differ, its cost and its error, which
    also is its color."""
    completed = [row for row in rows if row.status == "completed" and row.error is not None and row.name in records]
    columns = _columns(completed, records)
    figure = style.new_figure(9.6, 4.6)
    axes = figure.subplots()
    axes.axis("off")
    if len(completed) < 2:
        axes.text(0.5, 0.5, "fewer than two trials were completed", ha="center", transform=axes.transAxes)
        return figure
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    heights = [_draw_scale(axes, place, name, values) for place, (name, values) in enumerate(columns.items())]
    colors = colormaps["viridis"]([one[0] for one in zip(heights[-1], strict=True)])
    lines = [list(enumerate(each)) for each in zip(*heights, strict=True)]
    order = sorted(range(len(lines)), key=lambda one: -heights[-1][one])  # the best on top
    axes.add_collection(
        LineCollection([lines[one] for one in order], colors=[colors[one] for one in order], linewidths=1.2)
    )
    axes.set(xlim=(-0.3, len(columns) - 0.6), ylim=(-0.1, 1.12))
    return figure


def _mark_amounts(axes: Axes) -> None:
    """Marks a logarithmic axis with few numbers, such as 2 M."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: _amount(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _amount(value: float) -> str:
    """A number in three digits, with a suffix from a thousand on."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def _columns(rows: Sequence[Row], records: Mapping[str, Record]) -> dict[str, list[Any]]:
    """The values of the trials by the names of the settings that differ, then multiply-adds and error."""
    points = [
        {"depth": len(row.widths), "width": row.widths[0], **records[row.name].point} if row.widths else {}
        for row in rows
    ]
    names = dict.fromkeys(name for point in points for name in point if name != "widths")
    columns = {name: [point.get(name) for point in points] for name in names}
    columns = {name.rpartition(".")[2]: values for name, values in columns.items() if len(set(map(str, values))) > 1}
    return {**columns, "multiply-adds": [row.multiply_adds for row in rows], "error": [row.error for row in rows]}


def _draw_scale(axes: Axes, place: int, name: str, values: Sequence[Any]) -> list[float]:
    """Draws the axis of a column; returns the heights of the values on it, from 0 to 1."""
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)
    if numbers:
        low, high = min(values), max(values)
        logarithmic = low > 0 and high > LOGARITHMIC * low
        scale = math.log if logarithmic else float
        span = scale(high) - scale(low) or 1.0
        heights = [(scale(one) - scale(low)) / span for one in values]
        middle = {0.5: math.sqrt(low * high)} if logarithmic else {}
        marks = {height: _amount(value) for height, value in {0.0: low, **middle, 1.0: high}.items()}
    else:
        kinds = sorted(map(str, set(map(str, values))))
        at = {kind: number / max(1, len(kinds) - 1) for number, kind in enumerate(kinds)}
        heights, marks = [at[str(one)] for one in values], {height: kind for kind, height in at.items()}
    axes.plot([place, place], [0, 1], color=style.INK, linewidth=0.8)
    for height, text in marks.items():
        axes.text(place + 0.03, height, style.name(text, 14), fontsize=7, va="center")
    axes.text(place, 1.06, style.name(name, 16), ha="center", fontsize=8, fontweight="bold")
    return heights
