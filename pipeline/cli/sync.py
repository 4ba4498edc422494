"""The command ``sync``. Slow imports happen when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.cli.local_path import LocalPath
from pipeline.runtime.imports import quick_imports


@click.command(short_help="Send what the tracking store lacks of runs and searches.")
@click.argument("runs", nargs=-1, required=True, type=LocalPath(), metavar="RUN...")
def sync(runs: tuple[Path, ...]) -> None:
    """Sends what the tracking store of each RUN lacks, and then marks a run that has ended as such.

    RUN is the folder of a run, of a search (with all its trials), or of several of them. The files there are what is
    sent, with their original times, and what is there already is not stored twice. The store is the one that the run
    was tracked in last. A run that a process is training is left to that one, and a run whose process was killed is
    marked as killed.

    \b
    Examples:
      phasecollapse sync runs/imagenette-64
      phasecollapse sync runs
    """
    with quick_imports():
        from pipeline.tracking.sync import sync as send

    send(runs, click.echo)
