"""The command ``report``. Slow imports happen when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.cli.local_path import LocalPath
from pipeline.runtime.imports import quick_imports


@click.command(short_help="Write one HTML page about a run, several runs, or a search.")
@click.argument("runs", nargs=-1, required=True, type=LocalPath(), metavar="RUN...")
@click.option("-o", "--output", type=LocalPath(), help="HTML file [report-NAME.html, in the current folder].")
def report(runs: tuple[Path, ...], output: Path | None) -> None:
    """Writes a page about RUN, the folder of a run: its results, curves, pictures and settings, and how to repeat it.

    Several runs are compared: the settings in which they differ, their results, and their curves in one chart. For the
    folder of a search, the page has the table of its trials and their frontier. The page is one file, with all figures
    inside: it needs no network and no script, and can be sent, archived and printed. A run that is being trained, or
    that was damaged, gives a page of what is there.

    \b
    Examples:
      phasecollapse report runs/imagenette-64
      phasecollapse report runs/collapse runs/identity -o comparison.html
      phasecollapse report runs/widths
    """
    with quick_imports():
        from pipeline.report_page import page

    target = output or Path(f"report-{runs[0].absolute().name}{'-and-others' if len(runs) > 1 else ''}.html")
    page.write(runs, target)
    click.echo(f"report: {target}")
