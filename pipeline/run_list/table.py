"""The list of runs, and a comparison of some, as tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Sequence

import click
from rich.cells import cell_len, set_cell_size

from data_prep.common.errors import printable
from pipeline.run_list import catalog, columns
from pipeline.run_list.catalog import Listed

SHOWN = (
    *("name", "status", "epochs", "best_top1", "top1", "parameters", "multiply_adds", "images_per_second", "seconds"),
    *("data", "note"),
)
"""Columns of the table, by default."""
EXPENDABLE = ("images_per_second", "data", "multiply_adds", "seconds", "parameters", "best_top1")
"""Those that a narrow terminal leaves out, in this order."""
NARROWEST = {"name": 20, "note": 16}
"""Columns that are cut to fit, and the fewest characters of each."""
NAME_END = 9
"""Characters at the end of a name that are not cut: those of its digest."""
COLOURS = {"running": "green", "waiting": "yellow", "interrupted": "yellow", "failed": "red", "unreadable": "red"}
LEFT = {"name", "kind", "status", "data", "note"}
"""Columns of texts; the others are aligned to the right."""
EXCEPT = {"name", "kind", "updated", "epochs_planned", "epoch", "workers"}
"""Columns and metrics that a comparison leaves out."""
PLACES = {"run.name", "run.storage"}
"""Settings that a comparison leaves out."""


def show(listed: Sequence[Listed], keys: Sequence[str] = ()) -> None:
    """Prints a table: on a terminal, as wide as that.

    Args:
        keys: of the columns; by default SHOWN, as many as fit.
    """
    runs = list(catalog.everything(listed))
    cells = {key: [printable(columns.text(one, key)) for one in runs] for key in keys or SHOWN}
    if not keys:
        cells = {key: texts for key, texts in cells.items() if key == "name" or any(texts)}
    widths = {key: max(map(cell_len, (_title(key), *texts))) for key, texts in cells.items()}
    left_out = _fit(widths, keys) if sys.stdout.isatty() else []
    click.secho(_line({key: _title(key) for key in widths}, widths), bold=True)
    for number, one in enumerate(runs):
        click.secho(_line({key: cells[key][number] for key in widths}, widths), fg=COLOURS.get(one.status))
    if left_out:
        click.echo(f"not shown, for want of width: {', '.join(left_out)} (--columns names others)", err=True)


def _line(cells: dict[str, str], widths: dict[str, int]) -> str:
    """A line of a table; what is too long is cut, a name in its middle, as names often differ at the end."""
    parts = []
    for key, width in widths.items():
        text = cells[key]
        if cell_len(text) > width:
            end = text[-NAME_END:] if key == "name" else ""
            text = set_cell_size(text, width - 1 - cell_len(end)) + "…" + end
        blanks = " " * (width - cell_len(text))
        parts.append(text + blanks if key in LEFT else blanks + text)
    return "  ".join(parts).rstrip()


def _fit(widths: dict[str, int], asked: Sequence[str]) -> list[str]:
    """Removes columns, and narrows name and note, until all fit on the terminal; the columns that were removed."""
    wanted = {key: widths[key] for key in NARROWEST if key in widths}
    widths |= {key: min(width, NARROWEST[key]) for key, width in wanted.items()}

    def room() -> int:
        return shutil.get_terminal_size().columns - sum(width + 2 for width in widths.values()) + 2

    removed = [] if asked else [key for key in EXPENDABLE if room() < 0 and widths.pop(key, 0)]
    for key, width in wanted.items():
        widths[key] += min(width - widths[key], max(0, room()))
    return removed


def to_json(listed: Sequence[Listed], keys: Sequence[str] = ()) -> str:
    """A JSON list with an object for each run, search and trial, which has the value of every column."""
    chosen = keys or tuple(columns.COLUMNS)
    rows = [{key: columns.value(one, key) for key in chosen} for one in catalog.everything(listed)]
    return json.dumps(rows, indent=1, ensure_ascii=False)


def to_csv(listed: Sequence[Listed], keys: Sequence[str] = ()) -> str:
    """A CSV table with the value of every column, and a line for each run, search and trial."""
    chosen = keys or tuple(columns.COLUMNS)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(chosen)
    for one in catalog.everything(listed):
        writer.writerow(["" if (found := columns.value(one, key)) is None else found for key in chosen])
    return file.getvalue().rstrip("\n")


def differing(runs: Sequence[Listed]) -> list[str]:
    """The settings in which runs differ."""
    known = dict.fromkeys(key for one in runs for key in one.settings if key not in PLACES)
    return [key for key in known if any(columns.value(one, key) != columns.value(runs[0], key) for one in runs)]


def show_comparison(runs: Sequence[Listed]) -> None:
    """Prints the settings in which runs differ, and their results, side by side."""
    results = [key for key in columns.COLUMNS if key not in EXCEPT]
    metrics = dict.fromkeys(key for one in runs for key in one.metrics if key not in EXCEPT)
    rows = {_title(key): [columns.text(one, key) for one in runs] for key in (*differing(runs), *results, *metrics)}
    rows = {title: list(map(printable, texts)) for title, texts in rows.items() if any(texts)}
    widths = {"name": max(map(len, rows))} | {
        str(number): max(map(cell_len, (one.name, *(texts[number] for texts in rows.values()))))
        for number, one in enumerate(runs)
    }
    for title, texts in {"": [one.name for one in runs], **rows}.items():
        cells = {"name": title} | {str(number): text for number, text in enumerate(texts)}
        click.secho(_line(cells, widths), bold=not title)


def comparison_to_json(runs: Sequence[Listed]) -> str:
    """The settings in which runs differ, and all their results, as JSON."""
    settings, results = differing(runs), [key for key in columns.COLUMNS if key != "name"]
    content = {
        one.name: {
            "settings": {key: columns.value(one, key) for key in settings},
            "results": {key: columns.value(one, key) for key in results},
            "metrics": one.metrics,
        }
        for one in runs
    }
    return json.dumps(content, indent=1, ensure_ascii=False)


def _title(key: str) -> str:
    return columns.COLUMNS[key].title if key in columns.COLUMNS else key
