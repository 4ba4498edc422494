"""The command ``runs``: lists, compares and deletes runs. Slow imports happen when one runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from data_prep.cli.local_path import LocalPath
from data_prep.common.errors import UserError
from pipeline.runtime.imports import quick_imports

STORAGE = click.option("--storage", type=LocalPath(), default=Path("runs"), help="Folder of the runs [runs].")


class _ListsByDefault(click.Group):
    """A group of commands whose first, ``list``, need not be named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args[:1] and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if named else ["list", *args])


@click.group(cls=_ListsByDefault, short_help="List, filter, sort, compare and delete runs.")
def runs() -> None:
    """Lists, compares and deletes the runs and searches of a storage folder, from their folders alone.

    'phasecollapse runs' is 'phasecollapse runs list'.

    \b
    Examples:
      phasecollapse runs
      phasecollapse runs --filter 'top1>0.8' --filter status=finished --sort -top1
      phasecollapse runs compare imagenette-a imagenette-b
      phasecollapse runs delete imagenette-a
    """


@runs.command("list", short_help="List runs: status, accuracy, costs, time.")
@STORAGE
@click.option("--filter", "filters", multiple=True, metavar="'KEY OP VALUE'", help="Only runs that meet a condition.")
@click.option("--sort", "sort_by", default="-updated", help="Key to sort by, descending after a minus [-updated].")
@click.option("--columns", metavar="KEY,KEY,…", help="Keys of the columns.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, for spreadsheets.")
def list_runs(
    storage: Path, filters: tuple[str, ...], sort_by: str, columns: str | None, as_json: bool, as_csv: bool
) -> None:
    """Lists the runs in a storage folder, and each search with its trials, the newest first.

    \b
    Status:
      waiting      claimed by a process; no worker trains yet
      running      a worker trains; the note names the process and its host
      interrupted  stopped or killed: rerun the same command to resume
      failed       ended by an error, which the note states (all of it: error.log)
      finished     every epoch is trained
      unreadable   the file that identifies the run is damaged
    A trial may also have been stopped early by its search.

    A KEY is a column (name, kind, status, note, epochs, epochs_planned, best_top1, top1, parameters, multiply_adds,
    images_per_second, seconds, data, updated), a setting such as training.seed, or a metric of the last epoch such as
    train/loss. OP is one of = != < <= > >=. Texts are compared with patterns: 'name=imagenette-*'. Accuracies are
    fractions from 0 to 1.

    \b
    Examples:
      phasecollapse runs --filter 'top1>0.8' --filter model.skip=true
      phasecollapse runs --sort train/loss --columns name,top1,train/loss,optimizer.learning_rate
      phasecollapse runs --filter status=failed --json
    """
    with quick_imports():
        from pipeline.run_list import catalog, table
        from pipeline.run_list import columns as keyed

        if as_json and as_csv:
            raise UserError("--json and --csv exclude each other: choose one")
        listed = catalog.read(storage)  # as many objects as the imports make: a quarter of its time is collection
    chosen = tuple(filter(None, map(str.strip, (columns or "").split(","))))
    keyed.check(chosen, listed)
    selected = keyed.ordered(keyed.select(listed, [keyed.Condition.parse(one) for one in filters]), sort_by)
    if as_json or as_csv:
        click.echo((table.to_json if as_json else table.to_csv)(selected, chosen))
    elif selected:
        table.show(selected, chosen)
    else:
        reason = "no run meets the conditions" if listed else f"no run is in {storage} (--storage names another folder)"
        click.echo(reason)


@runs.command(short_help="Show how the settings and results of runs differ.")
@click.argument("names", nargs=-1, required=True, metavar="NAME NAME...")
@STORAGE
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def compare(names: tuple[str, ...], storage: Path, as_json: bool) -> None:
    """Shows the settings in which runs differ, and their results, side by side.

    A NAME is that of a run, as 'phasecollapse runs' lists it, or SEARCH/TRIAL.

    \b
    Example:
      phasecollapse runs compare imagenette-a imagenette-b search/32-64
    """
    from pipeline.run_list import catalog, table

    found = catalog.find(storage, names)
    for one in found:
        if one.kind == "search":
            raise UserError(f"'{one.name}' is a search: compare its trials, {one.name}/NAME")
    if as_json:
        click.echo(table.comparison_to_json(found))
    else:
        table.show_comparison(found)


@runs.command(short_help="Delete runs or searches, with their tracked runs and artifacts.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@STORAGE
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-tracked", is_flag=True, help="Leave them in MLflow, with their artifacts.")
def delete(names: tuple[str, ...], storage: Path, yes: bool, keep_tracked: bool) -> None:
    """Deletes the folders of runs, and their runs and artifacts in MLflow, after a question. A search is deleted with
    its trials.

    A run that a process trains is refused, and so is a single trial. Links are not followed. Copies at
    checkpoint.upload stay, and MLflow keeps a record of a deleted run until 'mlflow gc'.

    \b
    Examples:
      phasecollapse runs delete imagenette-a
      phasecollapse runs delete imagenette-a widths --yes
    """
    from data_prep.common.files import format_bytes
    from pipeline.run_list import deletion

    with deletion.prepared(storage, names, keep_tracked) as chosen:
        folders = ", ".join(map(str, chosen.folders))
        tracked = sum(len(found.runs) for found in chosen.tracked)
        what = f"{folders} ({format_bytes(chosen.bytes)}) and {tracked} tracked run{'s' * (tracked != 1)}"
        if not yes:
            if not sys.stdin.isatty():
                raise UserError(f"standard input is no terminal to ask on: --yes deletes {what} without a question")
            click.confirm(f"delete {what}?", abort=True)
        deletion.delete(chosen)
    click.echo(f"deleted {what}")
