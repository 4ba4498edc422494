"""Learning curves: loss, top-1 accuracy, learning rate and speed of one run or of several, over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pipeline.figures import style
from pipeline.runs.history import EpochRecord, StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 600
"""Points of a curve; longer ones are means of intervals, which a screen could not tell apart."""
MOST_RUNS = len(style.COLORS)
"""Runs of one chart."""


@dataclass(frozen=True)
class Curves:
    """The records of a run."""

    name: str
    epochs: Sequence[EpochRecord]
    steps: Sequence[StepRecord] = ()
    evaluated_on: str = "validation"
    """Subset of the measured accuracy: validation or holdout."""

    @property
    def steps_per_epoch(self) -> float | None:
        """Where steps lie between epochs; None before an epoch is finished, and then no steps are drawn."""
        return next((one.step / one.epoch for one in self.epochs if one.step), None)


class Panel(NamedTuple):
    """A chart of one quantity."""

    title: str
    unit: str
    of_steps: str | None
    """Metric of the step records."""
    of_epochs: tuple[tuple[str, str], ...]
    """Metrics of the epochs, with their names in the legend; the last one is the one that runs are compared by."""
    factor: float = 1.0


def panels(evaluated_on: str) -> tuple[Panel, ...]:
    """What is drawn, in reading order."""
    percent = (("train/top1", "training"), (f"{evaluated_on}/top1", evaluated_on))
    losses = (("train/loss", "training"), (f"{evaluated_on}/loss", evaluated_on))
    return (
        Panel("Loss", "cross-entropy in nats", "step/loss", losses),
        Panel("Top-1 accuracy", "% of images", None, percent, 100),
        Panel("Learning rate", "per step", "step/learning_rate", (("learning_rate", "at the end of the epoch"),)),
        Panel("Speed", "images/s", "step/images_per_second", (("train/images_per_second", "mean of the epoch"),)),
    )


def draw(runs: Sequence[Curves]) -> Figure:
    """The four charts of a run, or of several, at most MOST_RUNS, in one color each.

    A value that is not finite is a gap, and is counted under its chart.
    """
    runs = runs[:MOST_RUNS]
    together = len(runs) > 1
    rows = 0.17 * sum(style.name(run.name, 60).count("\n") + 1 for run in runs) if together else 0
    figure = style.new_figure(9.6, 6.2 + rows)
    for place, axes in enumerate(figure.subplots(2, 2).flat):
        gaps = 0
        for number, run in enumerate(runs):
            panel = panels(run.evaluated_on)[place]
            gaps += _draw_run(axes, panel, run, style.COLORS[number] if together else None)
        note = f"  ({gaps} values are not finite)" if gaps else ""
        axes.set(title=panel.title + note, xlabel="epoch", ylabel=panel.unit)
        last = max((line.get_xdata()[-1] for line in axes.lines if len(line.get_xdata())), default=1)
        axes.set_xlim(0, 1.03 * max(1, last))
        axes.margins(y=0.08)
        axes.locator_params(axis="x", integer=True)
        style.grid(axes)
        if place != 0 and place != 1 and not gaps:
            axes.set_ylim(bottom=0)
        if not axes.lines:
            axes.text(0.5, 0.5, "no values yet", ha="center", va="center", transform=axes.transAxes)
        elif not together:
            axes.legend(frameon=False, fontsize=8)
    if together:
        _name_runs(figure, runs)
    return figure


def _draw_run(axes: Axes, panel: Panel, run: Curves, color: str | None) -> int:
    """Draws one run; the number of its values that are not finite."""
    gaps = 0
    if panel.of_steps and run.steps_per_epoch:
        points = [
            (one.step / run.steps_per_epoch, one.metrics[panel.of_steps])
            for one in run.steps
            if panel.of_steps in one.metrics
        ]
        x, y, not_finite = _thinned(points)
        gaps += not_finite
        if x:
            label = None if color else "each few steps"
            axes.plot(x, y, color=color or style.COLORS[0], alpha=0.5, linewidth=0.9, label=label)
    drawn = panel.of_epochs[-1:] if color else panel.of_epochs
    for number, (metric, label) in enumerate(drawn, 2 - len(drawn)):
        points = [(one.epoch, panel.factor * one.metrics[metric]) for one in run.epochs if metric in one.metrics]
        x, y, not_finite = _thinned(points)
        gaps += not_finite
        marker, name = "o" if len(x) <= 60 else None, None if color else label
        if x:
            axes.plot(x, y, color=color or style.COLORS[number], marker=marker, markersize=3.5, label=name)
    return gaps


def _name_runs(figure: Figure, runs: Sequence[Curves]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=color) for color, _ in zip(style.COLORS, runs, strict=False)]
    names = [style.name(run.name, 60) for run in runs]
    figure.legend(lines, names, loc="outside lower center", ncols=1 if max(map(len, names)) > 40 else 2, frameon=False)


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float], int]:
    """Positions and values of at most MOST_POINTS points, NaN where a value is not finite; how many values are not."""
    size = -(-len(points) // MOST_POINTS) or 1
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    x = [part[-1][0] for part in parts]
    y = [_mean([value for _, value in part]) for part in parts]
    return x, y, sum(not math.isfinite(value) for _, value in points)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
