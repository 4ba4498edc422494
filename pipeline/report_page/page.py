"""The page: one HTML file that needs no network and no script, for light and dark screens and for paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from data_prep.common.errors import UserError, printable
from data_prep.common.files import explain_os_errors, write_atomically
from data_prep.common.progress import format_duration
from pipeline.config.settings_io import flatten
from pipeline.figures import learning_curves, run_pictures, style
from pipeline.report_page import run_view, search_view
from pipeline.report_page.run_view import Table, metric
from pipeline.runs import paths
from pipeline.tracking import run_card
from pipeline.tracking.run_card import RunFacts

GENERATOR = "phasecollapse report"
MOST_DETAILED = 6
"""Runs up to which a page that compares has the pictures of each."""
NOT_COMPARED = ("run.", "checkpoint.", "tracking.", "cluster.")
"""Settings that change no result."""


def write(folders: Sequence[Path], output: Path, results: Path | None = None) -> None:
    """Writes the page about runs, or about one search.

    Args:
        folders: of runs, or one of a search.
        output: HTML file; an earlier report is replaced.
        results: folder with the results of a search, instead of its own.

    Raises:
        UserError: a folder is not that of a run or a search; or `output` is something else than a report, or cannot be
            written.
    """
    check_output(output)
    text = render(folders, results)
    with explain_os_errors(output, resumable=False):
        write_atomically(output, text, flush=False)


def check_output(output: Path, option: str = "--output") -> None:
    """Checks that a page may be written; `option` names it in errors.

    Raises:
        UserError: there is a folder, or a file that is no report; or the folder around it does not exist.
    """
    if not output.parent.is_dir():
        raise UserError(f"{option}: {output.parent} is no folder: name a file in one that exists")
    if output.is_dir():
        raise UserError(f"{option}: {output} is a folder: name a file, such as {output / 'report.html'}")
    if output.exists():
        with explain_os_errors(output, resumable=False), output.open("rb") as file:
            if f'content="{GENERATOR}"'.encode() not in file.read(1000):
                raise UserError(f"{option}: {output} exists and is no report: name another file")


def render(folders: Sequence[Path], results: Path | None = None) -> str:
    """The page as text, see :func:`write`.

    Raises:
        UserError: a folder is not that of a run or a search, or a search is one of several folders.
    """
    searches = [folder for folder in folders if search_view.is_search(folder)]
    if searches and len(folders) > 1:
        raise UserError(f"{searches[0]} is a search: its report is a page of its own; name runs, or one search")
    if searches:
        return _page(*_search(searches[0], results))
    facts = [run_card.read(folder) for folder in folders]
    if len(facts) == 1:
        run = run_view.view(facts[0])
        return _page(f"Run {run.name}", _headline(facts[0]), {"single": run})
    return _page(f"Comparison of {len(facts)} runs", ", ".join(one.name for one in facts), _compared(facts, facts))


def _headline(facts: RunFacts) -> str:
    if facts.best is None:
        return "no epoch is finished yet"
    best = metric("{}/top1", facts.best.metrics[f"{facts.evaluated_on}/top1"])
    return f"{facts.evaluated_on} top-1 {best} % after epoch {facts.best.epoch}, the best of {len(facts.epochs)}"


def _search(folder: Path, results: Path | None) -> tuple[str, str, dict[str, Any]]:
    trials = []
    for file in sorted(folder.glob(f"*/{paths.IDENTITY}")):
        try:
            trials.append(run_card.read(file.parent))
        except UserError:  # begun at this moment
            continue
    view = search_view.view(folder, trials, results)
    best = sorted(trials, key=_best_top1, reverse=True)[: learning_curves.MOST_RUNS]
    parts = _compared(trials, sorted(best, key=lambda one: one.name)) if trials else {}
    return f"Search {folder.name}", view.note, {**parts, "search": view, "detailed": []}


def _best_top1(facts: RunFacts) -> float:
    return facts.best.metrics[f"{facts.evaluated_on}/top1"] if facts.best else -1.0


def _compared(facts: Sequence[RunFacts], drawn: Sequence[RunFacts]) -> dict[str, Any]:
    """The parts of a page that compares runs; `drawn` have curves."""
    curves = [run_pictures.curves(one.folder, one.settings) for one in drawn if one.settings and one.epochs]
    shown = curves[: learning_curves.MOST_RUNS]
    note = f"The curves of {len(shown)} of {len(facts)} runs." if len(shown) < len(facts) else ""
    detailed = facts if len(facts) <= MOST_DETAILED else []
    return {
        "detailed": [run_view.view(one) for one in detailed],
        "comparison": {
            "results": _results(facts),
            "differences": _differences(facts),
            "curves": Markup(style.svg(lambda: learning_curves.draw(shown), "learning curves")) if shown else None,
            "curves_note": note,
        },
    }


def _results(facts: Sequence[RunFacts]) -> Table:
    header = ("run", "epochs", "best top-1, %", "last top-1, %", "last loss", "parameters", "multiply-adds", "time")
    rows = []
    for one in facts:
        last = one.epochs[-1].metrics if one.epochs else {}
        best = one.best.metrics if one.best else {}
        top1, loss = f"{one.evaluated_on}/top1", f"{one.evaluated_on}/loss"
        costs = (f"{one.network[name]:,}" if name in one.network else "" for name in ("parameters", "multiply_adds"))
        rows.append(
            [
                one.name,
                one.progress().removesuffix(" epochs"),
                metric("{}/top1", best.get(top1)),
                metric("{}/top1", last.get(top1)),
                metric("{}/loss", last.get(loss)),
                *costs,
                format_duration(one.seconds) if one.epochs else "",
            ]
        )
    return Table(header, rows)


def _differences(facts: Sequence[RunFacts]) -> Table:
    """Settings that differ, and the data set where it does: a row each, a column for each run."""
    settings = [
        {**flatten(one.identity.settings), "data.digest": one.identity.data_digest[:12]} if one.identity else {}
        for one in facts
    ]
    names = dict.fromkeys(name for each in settings for name in each if not name.startswith(NOT_COMPARED))
    rows = [[name, *(_text(each.get(name)) for each in settings)] for name in names]
    return Table(["setting", *(one.name for one in facts)], [row for row in rows if len(set(row[1:])) > 1])


def _text(value: object) -> str:
    """A setting as in a configuration file; empty where it is not set."""
    return "" if value is None else printable(value if isinstance(value, str) else json.dumps(value))


def _page(title: str, subtitle: str, parts: dict[str, Any]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((resources.files(__package__) / "template.html").read_text(encoding="utf-8"))
    defaults: dict[str, Any] = {
        "single": None,
        "search": None,
        "comparison": None,
        "detailed": [],
        "generator": GENERATOR,
    }
    return template.render({**defaults, "title": title, "subtitle": subtitle, **parts})
