"""The command ``tune``. What is slow to import is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from data_prep.cli.local_path import LocalPath
from data_prep.common.errors import UserError
from pipeline.cli.train import explains_settings
from pipeline.runtime.imports import quick_imports


@click.command(short_help="Search over depth and width of the network; run again to resume.")
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
      phasecollapse tune configs/imagenette_search.yaml search.name=deeper 'search.depths=[4, 6, 8]'
      phasecollapse tune configs/imagenette_search.yaml train.cluster.address=10.0.0.1:6379
    """
    from tuning import config as settings_tree

    settings = settings_tree.load(config, overrides)
    with quick_imports():
        from data_prep.common import progress
        from pipeline.launch import run_plan
        from pipeline.runtime import system_info
        from pipeline.tracking.mlflow_store import addresses
        from tuning import frontier, plan, search

    if warning := system_info.warning(settings.train.training.precision, settings.train.cluster.gpu):
        click.echo(f"warning: {warning}", err=True)
    if dry_run:
        planned = plan.dry_run(settings)
        click.echo(str(planned))
        if sentence := run_plan.shortage(settings.train.cluster):
            click.echo(f"warning: train.{sentence}", err=True)
        click.echo(plan.describe_time(planned))
        return
    report = search.search(settings, report_line=click.echo, retry_failed=retry_failed)
    state = "had already finished" if report.already_finished else "finished"
    progress.show(frontier.table(report.rows, f"search {settings.search.name} {state}"), width=120)
    error = frontier.shown_error(settings.search.error)
    click.echo(f"* on the frontier: no completed trial is better in multiply-adds and in {error}")
    click.echo(f"folder: {report.folder} (table.md, table.csv, frontier.png)")
    click.echo(f"curves and settings: {addresses.ui_command(settings.train)}")
    if reasons := [row.reason for row in report.rows if row.status == "failed"]:
        count = f"{len(reasons)} of {len(report.rows)} trials failed"
        if len(reasons) == len(report.rows):
            raise UserError(
                f"{count} ({reasons[0]}): correct the cause and give --retry-failed, or change settings and choose "
                "another search.name"
            )
        click.echo(f"warning: {count}, the first because: {reasons[0]}", err=True)
