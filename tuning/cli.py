"""The command ``tune``. What is slow to import is imported when it runs."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from data_prep.cli.local_path import LocalPath
from data_prep.common.errors import UserError
from pipeline.cli.train import explains_settings
from pipeline.runtime.imports import quick_imports


class _Amount(click.ParamType):
    """A whole number above 0, also with a suffix, such as 500M."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from tuning.config import read_amount

        amount = read_amount(value)
        if isinstance(amount, int) and amount > 0:
            return amount
        return self.fail(f"{value!r} is no number such as 500M, 1.5G or 64000", param, ctx)


AMOUNT = _Amount()


@click.command(short_help="Search over networks and their settings; run again to resume.")
@click.argument("config", type=LocalPath())
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@explains_settings("tuning.config:SearchSettings")
@click.option("--dry-run", is_flag=True, help="Check everything and print the trials, without training.")
@click.option("--retry-failed", is_flag=True, help="Try trials that have failed again, from their latest checkpoints.")
def tune(config: Path, overrides: tuple[str, ...], dry_run: bool, retry_failed: bool) -> None:
    """Runs the search that the YAML file CONFIG describes; SECTION.FIELD=VALUE overrides single settings, those of the
    runs as train.SECTION.FIELD=VALUE.

    A search is a folder, train.run.storage/search.name, with the runs of its trials. The same command resumes an
    interrupted search without repeating trials that have ended, and reports if nothing is left to do.

    \b
    Examples:
      phasecollapse tune configs/imagenette_search.yaml --dry-run
      phasecollapse tune configs/imagenette_search.yaml
      phasecollapse tune configs/imagenette_search.yaml search.name=deeper 'search.space.depth=[4, 6, 8]'
      phasecollapse tune configs/imagenette_search.yaml train.cluster.address=10.0.0.1:6379
    """
    from tuning import config as settings_tree

    settings = settings_tree.load(config, overrides)
    with quick_imports():
        from data_prep.common import progress
        from pipeline.launch import run_plan
        from pipeline.runtime import system_info
        from pipeline.tracking.mlflow_store import addresses
        from tuning import plan
        from tuning import search as searching
        from tuning.results import files, frontier

    if warning := system_info.warning(settings.train.training.precision, settings.train.cluster.gpu):
        click.echo(f"warning: {warning}", err=True)
    if dry_run:
        planned = plan.dry_run(settings)
        click.echo(str(planned))
        if sentence := run_plan.shortage(settings.train.cluster):
            click.echo(f"warning: train.{sentence}", err=True)
        click.echo(plan.describe_time(planned))
        return
    report = searching.search(settings, report_line=click.echo, retry_failed=retry_failed)
    state = "had already finished" if report.already_finished else "finished"
    progress.show(frontier.table(report.rows, f"search {settings.search.name} {state}"), width=120)
    error = frontier.shown_error(settings.search.error)
    click.echo(f"* on the frontier: no completed trial is better in multiply-adds and in {error}")
    for line in files.findings(report.rows, report.finals):
        click.echo(line)
    click.echo(f"folder: {report.folder} ({', '.join(files.FILES)})")
    click.echo(f"as one page: phasecollapse search show {report.folder} --page search.html")
    click.echo(f"curves and settings: {addresses.ui_command(settings.train)}")
    if reasons := [row.reason for row in report.rows if row.status == "failed"]:
        count = f"{len(reasons)} of {len(report.rows)} trials failed"
        if len(reasons) == len(report.rows):
            raise UserError(
                f"{count} ({reasons[0]}): correct the cause and give --retry-failed, or change settings and choose "
                "another search.name"
            )
        click.echo(f"warning: {count}, the first because: {reasons[0]}", err=True)


@click.group(short_help="Look at the results of a search, and pick a network from it.")
def search() -> None:
    """Commands about a search that `phasecollapse tune` has started: SEARCH is its folder, STORAGE/NAME."""


@search.command(short_help="Show the trials and the frontier, at any time.")
@click.argument("folder", type=LocalPath(), metavar="SEARCH")
@click.option("--frontier", "only_frontier", is_flag=True, help="Only the trials on the frontier.")
@click.option("--page", type=LocalPath(), help="HTML file to write, too: the same with all pictures, in one file.")
def show(folder: Path, only_frontier: bool, page: Path | None) -> None:
    """Shows the trials of SEARCH so far, the cheapest network first: error with its interval of 95 %, cost, epochs and
    status.

    A star marks the frontier of completed trials: no other is better in both error and multiply-adds. Below the table
    stands which of them the held-out images tell apart, and the power law by which the error falls with the cost,
    checked on the largest network; and how much each setting matters for the error (fANOVA).

    \b
    Examples:
      phasecollapse search show runs/imagenette-search
      phasecollapse search show runs/imagenette-search --frontier
      phasecollapse search show runs/imagenette-search --page search.html
    """
    with quick_imports():
        from data_prep.common import progress
        from pipeline.report_page import page as report_page
        from tuning.results import files, frontier, importance, stored

    if page:
        report_page.check_output(page, "--page")
    found = stored.read(folder)
    best = frontier.on_frontier(found.rows)
    rows = [row for row in found.rows if row.name in best] if only_frontier else found.rows
    progress.show(frontier.table(rows, f"search {found.settings.search.name}"), width=140)
    for line in files.findings(found.rows, found.finals):
        click.echo(line)
    if shares := importance.measure(found.settings, found.records):
        progress.show(importance.table(shares), width=140)
        for line in shares.describe():
            click.echo(line)
    if page:
        with tempfile.TemporaryDirectory() as results:
            files.write(found.rows, found.records, Path(results), found.settings.search.error, found.finals)
            report_page.write([folder], page, Path(results))
        click.echo(f"page: {page}")


@search.command(short_help="Write the settings of the best network within a budget, for train.")
@click.argument("folder", type=LocalPath(), metavar="SEARCH")
@click.option("--max-multiply-adds", type=AMOUNT, help="Of the forward pass of one image, such as 500M.")
@click.option("--max-parameters", type=AMOUNT, help="Learned numbers, such as 3M; a complex one counts as two.")
@click.option("--epochs", type=click.IntRange(min=1), help="Epochs of the run [those of the search].")
@click.option("-o", "--output", type=LocalPath(), required=True, help="YAML file to write.")
def pick(
    folder: Path, max_multiply_adds: int | None, max_parameters: int | None, epochs: int | None, output: Path
) -> None:
    """Picks the completed trial of SEARCH with the smallest error within the limits, and writes a file that `train`
    takes as it is: its settings, on all training images, evaluated on the validation images, which the search has
    never seen.

    \b
    Examples:
      phasecollapse search pick runs/imagenette-search --max-multiply-adds 500M -o run.yaml
      phasecollapse search pick runs/imagenette-search --max-parameters 1M --epochs 16 -o run.yaml
      phasecollapse train run.yaml
    """
    with quick_imports():
        from tuning.results import decision, stored

    found = stored.read(folder)
    chosen = decision.best_within(found.rows, {"multiply_adds": max_multiply_adds, "parameters": max_parameters})
    said = decision.describe(chosen, found.rows, found.settings)
    name = f"{found.settings.search.name}-{chosen.name}"
    settings = decision.run_settings(found.runs[chosen.name], found.settings, name, epochs)
    decision.write_run(output, settings, said)
    for line in said:
        click.echo(line)
    click.echo(f"settings: {output}; train it with: phasecollapse train {output}")
