"""What the page shows of one run, as texts, tables and figures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from data_prep.common.errors import UserError, first_line, printable
from pipeline.config import settings_io
from pipeline.figures import learning_curves, run_pictures, style
from pipeline.runs import paths, status
from pipeline.runs.run_folder import RunFolder
from pipeline.tracking import run_card
from pipeline.tracking.run_card import RunFacts

LARGEST_PICTURE = 8 * 2**20
"""Bytes of a picture that a page includes."""
MOST_EVENTS = 500
CAPTIONS = {
    paths.CONFUSION: "Confusion matrix of the last evaluation",
    paths.MISTAKES: "Worst mistakes of the last evaluation",
    paths.SAMPLES: "What the network was fed",
    paths.FILTERS: "Filters",
    paths.SPECTRA: "Spectra of the learned matrices",
}
COLUMNS = {
    "train/loss": ("training loss", 1, ".4f"),
    "train/top1": ("training top-1, %", 100, ".2f"),
    "{}/loss": ("loss", 1, ".4f"),
    "{}/top1": ("top-1, %", 100, ".2f"),
    "{}/top5": ("top-5, %", 100, ".2f"),
    "learning_rate": ("learning rate", 1, ".4g"),
    "train/images_per_second": ("images/s", 1, ",.0f"),
    "train/waiting_for_data": ("waiting for data, %", 100, ".1f"),
}
"""Metrics of an epoch: heading, factor and format."""


class Table(NamedTuple):
    """A table of texts."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """An image inside the page."""

    caption: str
    address: str


@dataclass(frozen=True)
class RunView:
    """A run on the page."""

    name: str
    state: str
    problems: Sequence[str]
    facts: Sequence[tuple[str, str]]
    repeat: str
    results: Table | None = None
    curves: Markup | None = None
    classes: Table | None = None
    epochs: Table | None = None
    settings: str = ""
    events: str = ""
    pictures: Sequence[Picture] = field(default_factory=list)


def view(facts: RunFacts) -> RunView:
    """What the page shows of a run; what is missing or damaged in its folder is left out, and damage is named."""
    problems = list(facts.problems)
    curves = None
    if facts.epochs and facts.settings:
        drawn = run_pictures.curves(facts.folder, facts.settings)
        curves = Markup(style.svg(lambda: learning_curves.draw([drawn]), f"learning curves of {facts.name}"))
    return RunView(
        facts.name,
        _state(facts),
        problems,
        [("Network", facts.what()), ("Data", facts.data()), ("Training", facts.progress()), *run_card.rows(facts)],
        "\n".join(facts.repeat()),
        _results(facts),
        curves,
        _classes(facts, problems),
        _epochs(facts),
        settings_io.to_yaml(facts.settings).removesuffix(settings_io.END_OF_DOCUMENT) if facts.settings else "",
        _events(facts.folder),
        _pictures(facts.folder),
    )


def embedded(file: Path) -> str | None:
    """The address of a PNG file's content inside a page; None if it is missing or no PNG file."""
    try:
        if file.stat().st_size > LARGEST_PICTURE:
            return None
        content = file.read_bytes()
    except OSError:
        return None
    if not content.startswith(b"\x89PNG"):
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def metric(name: str, value: float | None) -> str:
    """A metric of an epoch as text; empty if it is unknown."""
    _, factor, form = COLUMNS[name]
    return "" if value is None else f"{factor * value:{form}}"


def _state(facts: RunFacts) -> str:
    if facts.identity is None:
        return "damaged"
    found = status.read(RunFolder(facts.folder, facts.identity), len(facts.epochs))
    return f"{found.state}: {printable(found.note)}" if found.state == "failed" else found.state


def _results(facts: RunFacts) -> Table | None:
    measured = run_card.results(facts)
    if not measured:
        return None
    names = ("{}/top1", "{}/top5", "{}/loss")
    rows = [
        [COLUMNS[name][0], *(metric(name, one.metrics.get(name.format(facts.evaluated_on))) for _, one in measured)]
        for name in names
    ]
    return Table([facts.evaluated_on, *(heading for heading, _ in measured)], rows)


def _epochs(facts: RunFacts) -> Table | None:
    if not facts.epochs:
        return None
    rows = [
        [str(one.epoch), *(metric(name, one.metrics.get(name.format(facts.evaluated_on))) for name in COLUMNS)]
        for one in facts.epochs
    ]
    headings = [
        f"{facts.evaluated_on} {heading}" if name.startswith("{}") else heading
        for name, (heading, _, _) in COLUMNS.items()
    ]
    return Table(["epoch", *headings], rows)


def _classes(facts: RunFacts, problems: list[str]) -> Table | None:
    if not (facts.folder / paths.REPORT).is_dir():
        return None
    try:
        report = run_pictures.read_report(facts.folder)
    except UserError as error:
        problems.append(str(error))
        return None
    ranked = sorted((one for one in report.classes if one.images), key=lambda one: (one.top1, one.id))
    rows = [[one.name, one.taken_for or "", f"{one.images:,}", f"{100 * one.top1:.1f}"] for one in ranked]
    return Table(["class, the worst first", "most often taken for", "images", "top-1, %"], rows)


def _events(folder: Path) -> str:
    try:
        lines = (folder / paths.EVENTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return "" if isinstance(error, FileNotFoundError) else first_line(error)
    return "\n".join(printable(line) for line in lines[-MOST_EVENTS:])


def _pictures(folder: Path) -> list[Picture]:
    found = ((caption, embedded(folder / paths.PICTURES / name)) for name, caption in CAPTIONS.items())
    return [Picture(caption, address) for caption, address in found if address]
