"""Commands for prepared data sets: `merge`, `verify`, `stage` and `inspect`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from data_prep.cli.local_path import LocalPath, not_empty
from data_prep.common.errors import UserError, count_of, printable
from data_prep.common.files import replacing

if TYPE_CHECKING:
    from data_prep.format.manifest import Manifest, SplitName
    from data_prep.maintain.verification_report import VerificationReport

SHEET = "contact-sheet.png"
"""Default name of the contact sheet, in the data set's folder."""
SHOWN = 20
"""Number of problems that `verify` prints; --json lists more."""

Dataset = LocalPath()
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@click.argument("dataset", type=Dataset)
@click.argument("output", type=Dataset, required=False)
def merge(dataset: Path, output: Path | None) -> None:
    """Merge the files of DATASET into one FFCV file for each split, which any FFCV loader opens.

    With OUTPUT, the merged data set is a new folder. Without it, DATASET itself is merged: files are hashed and copied
    first and removed last, so that the data set is usable after an interruption. Rerun the same command then: merged
    splits are kept, the interrupted one starts over. Samples, their order and the data set's digest do not change.

    \b
    Examples:
      phasecollapse merge datasets/imagenet
      phasecollapse merge datasets/imagenet /scratch/imagenet
    """
    from data_prep.maintain.merge import bytes_to_read, merge

    with _bar(bytes_to_read(dataset), "bytes") as bar:
        merged = merge(dataset, output, bar.advance)
    state = "was already merged" if merged.already_there else "is merged"
    click.echo(f"{merged.folder} {state}: {_describe(merged.manifest)}")


@click.command()
@click.argument("dataset", type=Dataset)
@click.option("--hashes-only", is_flag=True, help="Compare files with their hashes, and decode nothing.")
@click.option("--threads", type=click.IntRange(min=1), help="Number of decoding threads  [default: all CPUs]")
@click.option(
    "--reader",
    type=click.Choice(["native", "ffcv"]),
    default="native",
    show_default=True,
    help="ffcv: open the files with stock FFCV too, and compare labels and pixels.",
)
@as_json
def verify(dataset: Path, hashes_only: bool, threads: int | None, reader: str, as_json: bool) -> None:
    """Check that hashes, counts and labels of DATASET agree with its manifest, and that every image decodes.

    All problems are listed; the exit status is 2 if there are any.

    \b
    Examples:
      phasecollapse verify datasets/imagenet
      phasecollapse verify datasets/imagenet --hashes-only
      phasecollapse verify datasets/imagenet --reader ffcv
    """
    if reader == "ffcv" and hashes_only:
        raise UserError("--hashes-only decodes nothing, so there is nothing to compare with --reader ffcv: drop one")
    from data_prep.format.manifest import read_manifest
    from data_prep.maintain.verify import verify

    manifest = read_manifest(dataset)
    splits = manifest.splits.values()
    if hashes_only:
        total, unit = sum(file.bytes for split in splits for file in split.files), "bytes"
    else:
        total, unit = sum(file.samples for split in splits for file in split.files), "images"
    with _bar(total, unit) as bar:
        if reader == "ffcv":
            from data_prep.maintain.ffcv_check import compare_with_ffcv

            report = compare_with_ffcv(dataset, bar.advance)
        else:
            report = verify(dataset, hashes_only=hashes_only, threads=threads, advance=bar.advance)
    if as_json:
        click.echo(json.dumps(_report(dataset, report, hashes_only)))
    else:
        for problem in report.problems[:SHOWN]:
            click.echo(printable(str(problem)))
        if report.problem_count > SHOWN:
            click.echo(
                f"… and {report.problem_count - SHOWN} more, of which --json lists {len(report.problems)} in all"
            )
    if report.problem_count:
        problems = "1 problem" if report.problem_count == 1 else f"{report.problem_count} problems"
        raise UserError(f"{dataset} has {problems}: prepare it again, or copy it again from an intact copy")
    if not as_json:
        checked = "every file has its hash" if hashes_only else "every hash agrees and every image decodes"
        if reader == "ffcv":
            checked = "stock FFCV reads the same labels and pixels"
        state = "can be read" if reader == "ffcv" else "is whole"
        click.echo(f"{dataset} {state}, {checked}: {_describe(manifest)}")


@click.command()
@click.argument("dataset", callback=not_empty)
@click.argument("folder", type=Dataset)
@click.option("--check", is_flag=True, help="Hash a copy that is already there, and repair it.")
def stage(dataset: str, folder: Path, check: bool) -> None:
    """Copy DATASET once to a local disk of this node, into FOLDER/NAME-DIGEST, and print that path.

    DATASET is a folder, on a disk or a network file system, or an address such as s3://bucket/imagenet or
    gs://bucket/imagenet. Hashes are checked while copying. After an interruption, rerun the same command to resume. Of
    several commands that run at the same time, one copies and the others wait for it.

    \b
    Examples:
      phasecollapse stage /nfs/datasets/imagenet /scratch
      phasecollapse stage s3://bucket/imagenet /scratch
    """
    from data_prep.maintain.stage import stage

    def report_wait(target: Path) -> None:
        click.echo(f"another process is copying {target}: waiting for it", err=True)

    with _bar(None, "bytes") as bar:
        target = stage(dataset, folder, check=check, advance=bar.advance, on_copy=bar.set_total, on_wait=report_wait)
    click.echo(target)


@click.command()
@click.argument("dataset", type=Dataset)
@click.option("--sheet", type=LocalPath(dir_okay=False), help=f"PNG file  [default: DATASET/{SHEET}]")
@click.option("--no-sheet", is_flag=True, help="Draw no contact sheet.")
@click.option("--split", type=click.Choice(["train", "validation"]), help="Draw this split only.")
@click.option("--class", "class_name", metavar="CLASS", help="Draw this class only: an id, a name or an index.")
@click.option(
    "--columns", type=click.IntRange(1, 100), default=8, show_default=True, help="Columns of each split's grid."
)
@click.option("--rows", type=click.IntRange(1, 100), default=4, show_default=True, help="Rows of each split's grid.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the choice of images.")
@as_json
def inspect(
    dataset: Path,
    sheet: Path | None,
    no_sheet: bool,
    split: SplitName | None,
    class_name: str | None,
    columns: int,
    rows: int,
    seed: int,
    as_json: bool,
) -> None:
    """Print statistics of DATASET, and draw a contact sheet: a grid of its images with their labels.

    \b
    Examples:
      phasecollapse inspect datasets/imagenet
      phasecollapse inspect datasets/imagenet --class "golf ball" --sheet golf.png
    """
    from data_prep.common import progress
    from data_prep.maintain.summary import render, summarize

    if no_sheet and sheet:
        raise UserError(f"--no-sheet and --sheet {sheet} exclude each other: leave one out")
    summary = summarize(dataset)
    drawn = None
    if not no_sheet:
        drawn = sheet or dataset / SHEET
        _draw(dataset, drawn, [split] if split else None, class_name, columns, rows, seed)
    if as_json:
        click.echo(json.dumps(summary.model_dump(mode="json") | {"sheet": drawn and str(drawn)}))
        return
    progress.show(render(summary), width=120)
    if drawn:
        click.echo(f"contact sheet: {drawn}")


def _draw(
    dataset: Path,
    path: Path,
    splits: list[SplitName] | None,
    class_name: str | None,
    columns: int,
    rows: int,
    seed: int,
) -> None:
    from data_prep.format.manifest import SPLITS
    from data_prep.maintain.contact_sheet import draw

    image = draw(dataset, splits=splits or SPLITS, class_name=class_name, columns=columns, rows=rows, seed=seed)
    try:
        with replacing(path, flush=False) as file:
            image.save(file, "PNG")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"contact sheet {path} cannot be written ({reason}): choose another with --sheet, or --no-sheet"
        ) from None


def _describe(manifest: Manifest) -> str:
    from data_prep.common.files import format_bytes

    counts = " and ".join(f"{split.samples} {name}" for name, split in manifest.splits.items())
    files = [file for split in manifest.splits.values() for file in split.files]
    size = format_bytes(sum(file.bytes for file in files))
    return f"{counts} images in {count_of(len(files), 'file')}, {size}, digest {manifest.digest[:12]}"


def _report(dataset: Path, report: VerificationReport, hashes_only: bool) -> dict[str, object]:
    return {
        "dataset": str(dataset),
        "digest": report.manifest.digest,
        "whole": report.problem_count == 0,
        "hashes_only": hashes_only,
        "files": report.files,
        "images": report.images,
        "problem_count": report.problem_count,
        "problems": [{"file": each.file, "sample": each.sample, "reason": each.reason} for each in report.problems],
    }


class _Bar(NamedTuple):
    advance: Callable[[int], None]
    set_total: Callable[[int], None]
    """Sets the total, where it is not known from the start."""


@contextmanager
def _bar(total: int | None, unit: str) -> Iterator[_Bar]:
    """A progress bar on standard error, which only a terminal shows.

    Args:
        total: number of units; None if it is not known yet.
        unit: images, or bytes, which are shown in kB, MB, …
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class PerSecond(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} {unit}/s")

    numbers = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(), PerSecond())
    columns = (BarColumn(), *numbers, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield _Bar(
            advance=lambda count: progress.advance(task, count),
            set_total=lambda count: progress.update(task, total=count),
        )
