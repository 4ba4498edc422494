"""The command `phasecollapse prepare`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from data_prep.errors import UserError

if TYPE_CHECKING:
    from data_prep.sources import ImageSource
    from data_prep.write import Prepared

TEXTURES = "textures"


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] OUTPUT")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Order of images; all of textures."
)
@click.option("--shard-samples", type=click.IntRange(min=1), help="Images in a file of the output  [default: 4096]")
@click.option("--max-side", type=click.IntRange(min=8), help="Folders: longest side stored, in pixels  [default: 512]")
@click.option(
    "--class-names",
    type=click.Path(path_type=Path),
    help="Folders: text file with a line 'id name' for each class  [default: LOC_synset_mapping.txt or classes.txt in "
    "SOURCE, if there is one]",
)
@click.option("--train-per-class", type=click.IntRange(min=1), help="Textures: training images  [default: 400]")
@click.option("--validation-per-class", type=click.IntRange(min=1), help="Textures: validation images  [default: 100]")
def prepare(
    paths: tuple[str, ...],
    seed: int,
    shard_samples: int | None,
    max_side: int | None,
    class_names: Path | None,
    train_per_class: int | None,
    validation_per_class: int | None,
) -> None:
    """Turn images into a data set to train on: the new folder OUTPUT, with FFCV files and a manifest.json.

    SOURCE is a folder SOURCE/{train,val}/CLASS/* of image files of any kind (val may also be called valid, validation
    or test), or the word textures: a generated data set of ten classes, made in seconds, which is also what you get
    without a SOURCE. The same request again finds its work done.

    \b
    Examples:
      phasecollapse prepare textures datasets/textures
      phasecollapse prepare ~/imagenette2-160 datasets/imagenette
    """
    *given, output = paths
    if len(given) > 1:
        raise UserError(f"prepare takes a SOURCE and an OUTPUT, but got {len(paths)} arguments: {' '.join(paths)}")
    name = given[0] if given else TEXTURES
    for_folders = {"max_side": max_side, "class_names": class_names}
    for_textures = {"train_per_class": train_per_class, "validation_per_class": validation_per_class}
    if name == TEXTURES:
        _refuse(for_folders, "folders of images, not for textures")
    else:
        _refuse(for_textures, f"textures, not for the folder {name}")
    if not given and Path(output, "train").is_dir():
        raise UserError(
            f"{output} looks like a source of images: name an output too, 'phasecollapse prepare {output} OUTPUT'"
        )
    source = _open_source(name, seed, class_names, _given(for_textures))
    limits = _given({"shard_samples": shard_samples, "max_side": max_side})
    click.echo(_summarize(_write(source, Path(output), seed, limits), Path(output)))


def _given(options: Mapping[str, int | None]) -> dict[str, int]:
    """The options that the user gave; the others keep the defaults of what they are passed to."""
    return {name: value for name, value in options.items() if value is not None}


def _refuse(options: Mapping[str, object], message: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name.replace('_', '-')} is for {message}: leave it out")


def _open_source(name: str, seed: int, class_names: Path | None, per_class: dict[str, int]) -> ImageSource:
    if name == TEXTURES:
        from data_prep.textures import Textures

        return Textures(seed, **per_class)
    from data_prep.sources import ClassFolders

    return ClassFolders(Path(name), class_names)


def _write(source: ImageSource, output: Path, seed: int, limits: dict[str, int]) -> Prepared:
    """Prepares with a progress bar, which only a terminal shows."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
    from rich.text import Text

    from data_prep.sources import SPLITS
    from data_prep.write import prepare

    class ImagesPerSecond(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.0f} images/s")

    columns = (BarColumn(), MofNCompleteColumn(), ImagesPerSecond(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        bar = progress.add_task("", total=sum(len(source.labels(split)) for split in SPLITS))
        return prepare(source, output, seed=seed, advance=lambda: progress.advance(bar), **limits)


def _summarize(prepared: Prepared, output: Path) -> str:
    manifest = prepared.manifest
    counts = " and ".join(f"{split.samples} {name}" for name, split in manifest.splits.items())
    megabytes = sum(shard.bytes for split in manifest.splits.values() for shard in split.shards) / 1e6
    state = "was already prepared" if prepared.already_there else "is prepared"
    sides = " to ".join(str(side) for side in sorted({manifest.min_side, manifest.max_side}))
    return (
        f"{output} {state}: {counts} images of {len(manifest.classes)} classes, sides of {sides} "
        f"pixels, {megabytes:.1f} MB, digest {manifest.digest[:12]}"
    )
