"""What the page shows of a search: its table, its frontier, and its settings, from the files in its folder."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import count_of, first_line
from pipeline.report_page.run_view import Table, embedded
from pipeline.runs import paths
from pipeline.tracking.run_card import RunFacts

COLUMNS = ("trial", "status", "widths", "parameters", "multiply-adds", "error", "epochs")
PICTURES = {
    "Error against cost": paths.SEARCH_PICTURE,
    "Learning curves of all trials": paths.SEARCH_CURVES,
    "Settings, cost and error of the completed trials": paths.SEARCH_COORDINATES,
}
"""Files by their titles."""


@dataclass(frozen=True)
class SearchView:
    """A search on the page."""

    name: str
    problems: Sequence[str]
    table: Table | None
    note: str
    findings: Sequence[str]
    pictures: Sequence[tuple[str, str]]
    """Each with its title."""
    settings: str


def is_search(folder: Path) -> bool:
    """Whether a folder is that of a search."""
    return (folder / paths.SEARCH).is_file()


def view(folder: Path, trials: Sequence[RunFacts], results: Path | None = None) -> SearchView:
    """What the page shows of a search. Before its end there is no table: its trials are then listed as runs.

    Args:
        results: folder with the results, instead of the search's own.
    """
    problems: list[str] = []
    findings: list[str] = []
    table, note = None, ""
    results = results or folder
    try:
        with (results / paths.SEARCH_NUMBERS).open(encoding="utf-8", newline="") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: float(row["multiply-adds"]))
        table = Table(COLUMNS, [[_cell(row, column) for column in COLUMNS] for row in rows])
        note = "Cheapest network first; a star marks errors on the frontier of error and multiply-adds."
    except FileNotFoundError:
        note = f"The search has not ended: {count_of(len(trials), 'trial')} so far."
    except (OSError, ValueError, KeyError) as error:
        problems.append(f"{results / paths.SEARCH_NUMBERS} cannot be read ({first_line(error)})")
    with suppress(OSError, ValueError):  # of a search of an earlier version
        findings = (results / paths.SEARCH_FINDINGS).read_text(encoding="utf-8").splitlines()
    try:
        settings = (folder / paths.SEARCH).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        settings = ""
        problems.append(f"{folder / paths.SEARCH} cannot be read ({first_line(error)})")
    pictures = [(title, shown) for title, name in PICTURES.items() if (shown := embedded(results / name))]
    return SearchView(folder.name, problems, table, note, findings, pictures, settings)


def _cell(row: dict[str, str], column: str) -> str:
    value = row[column]
    if column in ("parameters", "multiply-adds"):
        return f"{int(value):,}"
    if column == "error" and value:
        return f"{float(value):.4f}{' *' if row['frontier'] == '1' else ''}"
    if column == "status" and row.get("reason"):
        return f"{value}: {row['reason']}"
    return value
