"""The trials of a search as a table, and their frontier."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

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
    seconds: float | None = None
    """Of training steps in an epoch, on the machines of the search; None where no epoch was finished."""

    @property
    def interval(self) -> Interval | None:
        """Of the error, by the number of images."""
        return intervals.of_error(self.error, self.images) if self.error is not None and self.images else None


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
    writer.writerow([*columns, "status", "frontier", "reason", "seconds_per_epoch"])
    for row in rows:
        widths = "-".join(map(str, row.widths))
        error = "" if row.error is None else row.error
        ends = row.interval or ("", "")
        numbers = [row.name, len(row.widths), widths, row.parameters, row.multiply_adds, error, *ends, row.epochs]
        seconds = "" if row.seconds is None else round(row.seconds, 3)
        writer.writerow([*numbers, row.status, int(row.name in best), row.reason, seconds])
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
