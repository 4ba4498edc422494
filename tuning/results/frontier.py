"""The results of a search: the table of its trials, their frontier, and the picture of both."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from pipeline.runs import paths
from tuning.results import intervals
from tuning.results.dominance import frontier
from tuning.results.intervals import Interval


@dataclass(frozen=True)
class Row:
    """One trial."""

    name: str
    widths: tuple[int, ...]
    parameters: int
    """Learned numbers; a complex one counts as two."""
    multiply_adds: int
    """Of the forward pass of one image."""
    error: float | None
    """On the images held out, after the last epoch; None where no epoch was finished."""
    epochs: int
    status: str
    """completed, stopped early, failed or pending."""
    reason: str = ""
    """Why it failed."""
    images: int = 0
    """That the error was measured on; 0 if unknown."""

    @property
    def interval(self) -> Interval | None:
        """Of the error, by the number of images."""
        return intervals.of_error(self.error, self.images) if self.error is not None and self.images else None


NAMED = 12
"""With more trials than this, the picture names only those on the frontier."""
FILES = (paths.SEARCH_TABLE, paths.SEARCH_NUMBERS, paths.SEARCH_PICTURE)
"""Files of the result."""
HEADER = ("trial", "depth", "widths", "parameters", "multiply-adds", "error", "95 %", "epochs", "status")


def on_frontier(rows: Sequence[Row]) -> set[str]:
    """Names of the completed trials on the frontier of multiply-adds and error.

    Trials stopped early have trained for less time than the others, so their error says nothing beside theirs.
    """
    completed = [
        (row, (row.multiply_adds, row.error)) for row in rows if row.status == "completed" and row.error is not None
    ]
    flags = frontier([(cost, error) for _, (cost, error) in completed])
    return {row.name for (row, _), flag in zip(completed, flags, strict=True) if flag}


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The table's text, cheapest network first; a star marks the errors on the frontier."""
    best = on_frontier(rows)
    return [
        (
            row.name,
            str(len(row.widths)),
            "-".join(map(str, row.widths)),
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            "" if row.error is None else f"{row.error:.4f}{' *' if row.name in best else ''}",
            "" if row.interval is None else f"{row.interval.low:.3f}–{row.interval.high:.3f}",
            str(row.epochs),
            f"{row.status}: {row.reason}" if row.reason else row.status,
        )
        for row in sorted(rows, key=lambda row: (row.multiply_adds, row.name))
    ]


def table(rows: Sequence[Row], title: str) -> Table:
    """The table for a terminal."""
    result = Table(title=title)
    for column in HEADER:
        numeric = column in ("depth", "parameters", "multiply-adds", "epochs")
        result.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells(rows):
        result.add_row(*row)
    return result


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    lines = [HEADER, ("---",) * len(HEADER), *cells(rows)]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def comma_separated(rows: Sequence[Row]) -> str:
    """The table as CSV: numbers without separators, whether on the frontier as 1 or 0."""
    best = on_frontier(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ["trial", "depth", "widths", "parameters", "multiply-adds", "error", "error_low", "error_high", "epochs"]
    writer.writerow([*columns, "status", "frontier", "reason"])
    for row in rows:
        widths = "-".join(map(str, row.widths))
        error = "" if row.error is None else row.error
        ends = row.interval or ("", "")
        numbers = [row.name, len(row.widths), widths, row.parameters, row.multiply_adds, error, *ends, row.epochs]
        writer.writerow([*numbers, row.status, int(row.name in best), row.reason])
    return text.getvalue()


def told_apart(rows: Sequence[Row]) -> str:
    """Which neighbors on the frontier the images tell apart, and which not, in a sentence."""
    names = on_frontier(rows)
    best = sorted((row for row in rows if row.name in names), key=lambda row: row.multiply_adds)
    pairs = [(one, other) for one, other in itertools.pairwise(best) if one.images and one.error != other.error]
    if not pairs:
        return "fewer than two points are on the frontier: there is nothing to tell apart"
    same = [
        f"{one.name} and {other.name}"
        for one, other in pairs
        if not intervals.are_apart(one.error or 0.0, other.error or 0.0, one.images)
    ]
    if not same:
        return f"{pairs[0][0].images:,} images tell all neighbors on the frontier apart, with 95 % confidence"
    return f"{pairs[0][0].images:,} images do not tell apart, with 95 % confidence: {'; '.join(same)}"


def shown_error(name: str) -> str:
    """What `search.error` is called in texts: top-1 error or top-5 error."""
    return f"{name.replace('top', 'top-')} error"


def picture(rows: Sequence[Row], path: Path, error_name: str) -> None:
    """Draws error against multiply-adds of the completed trials, with the frontier as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best = on_frontier(rows)
    completed = sorted(
        (row.multiply_adds, row.error, row.name, row.interval or (row.error, row.error))
        for row in rows
        if row.status == "completed" and row.error is not None
    )
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    line = [(cost, error) for cost, error, name, _ in completed if name in best]
    axes.plot([cost for cost, _ in line], [error for _, error in line], color="tab:blue", label="frontier")
    for cost, error, name, (low, high) in completed:
        color = "tab:blue" if name in best else "tab:gray"
        axes.errorbar(cost, error, [[error - low], [high - error]], fmt="o", color=color, elinewidth=0.8, capsize=2)
        if name in best or len(completed) <= NAMED:
            axes.annotate(name, (cost, error), xytext=(5, 5), textcoords="offset points", fontsize=8)
    if not completed:
        axes.text(0.5, 0.5, "no trial was completed", ha="center", transform=axes.transAxes)
    axes.set_xscale("log")
    axes.margins(x=0.25, y=0.15)
    axes.set_xlabel("multiply-adds for one image")
    axes.set_ylabel(f"{shown_error(error_name)} on images held out from training")
    axes.grid(True, which="both", alpha=0.3)
    if line:
        axes.legend()
    figure.savefig(path, dpi=120)


def write(rows: Sequence[Row], folder: Path, error_name: str) -> list[Path]:
    """Writes `FILES` into `folder`; returns their paths."""
    files = [folder / name for name in FILES]
    files[0].write_text(markdown(rows), encoding="utf-8")
    files[1].write_text(comma_separated(rows), encoding="utf-8")
    picture(rows, files[2], error_name)
    return files
