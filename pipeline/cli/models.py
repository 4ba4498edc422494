"""The commands ``evaluate``, ``predict``, ``export`` and ``register`` for trained networks.

Slow imports happen when one runs, that of MLflow only where it is needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from data_prep.cli.local_path import LocalPath
from data_prep.common.errors import count_of
from pipeline.config.references import REFERENCES
from pipeline.runtime.imports import quick_imports

if TYPE_CHECKING:
    from pipeline.runs.trained_model import Which

STORAGE = "Folder of the runs, for models:/ and runs:/ [runs]."
URI = "Tracking store, for models:/ and runs:/ [MLFLOW_TRACKING_URI, or the one inside --storage]."


class _Source(LocalPath):
    """A path on this machine, or models:/… or runs:/… in MLflow; a text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """See :class:`LocalPath`."""
        return value if value.startswith(REFERENCES) else str(super().convert(value, param, ctx))


@contextmanager
def _checkpoint(source: str, storage: Path | None, uri: str | None) -> Iterator[Path]:
    """Yields the folder of a run or a checkpoint, downloaded if it is in MLflow."""
    if not source.startswith(REFERENCES):
        yield Path(source)
        return
    with quick_imports():
        from pipeline.tracking.mlflow_store import registry
    with registry.checkpoint_of(source, storage, uri) as checkpoint:
        yield checkpoint


@click.command(short_help="Evaluate a trained network on a prepared data set.")
@click.argument("source", type=_Source())
@click.argument("data", type=LocalPath())
@click.option(
    "--split", type=click.Choice(["validation", "train"]), default="validation", help="Split to evaluate [validation]."
)
@click.option(
    "--output", type=LocalPath(), help="Folder for the report: JSON, CSV, confusion matrix and worst mistakes."
)
@click.option("--flip", is_flag=True, help="Average the predictions of each image and its mirror image.")
@click.option("--batch-size", type=click.IntRange(1), default=100, help="Images per forward pass [100].")
@click.option("--threads", type=click.IntRange(1), help="Threads of the decoder, and of torch on a CPU [all cores].")
@click.option(
    "--on-damage", type=click.Choice(["stop", "skip"]), default="stop", help="What to do at a damaged image [stop]."
)
@click.option("--gpu", is_flag=True, help="Compute on this machine's first GPU.")
@click.option("--bfloat16", is_flag=True, help="Compute in bfloat16 mixed precision, as in training.")
@click.option("--storage", type=LocalPath(), help=STORAGE)
@click.option("--uri", help=URI)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def evaluate(
    source: str,
    data: Path,
    output: Path | None,
    threads: int | None,
    gpu: bool,
    bfloat16: bool,
    storage: Path | None,
    uri: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Evaluates the network of SOURCE on every image of DATA, a folder written by 'prepare'.

    SOURCE is the folder of a run (its latest checkpoint) or of one checkpoint, or a model in MLflow: models:/NAME@ALIAS
    or models:/NAME/VERSION, models:/NAME (its latest version), runs:/ID (the last checkpoint) or runs:/ID/best. Prints
    top-1 and top-5 accuracy, loss and calibration error, and the best and the worst classes. Classes are matched by id,
    so the data set may have only some of the network's classes.

    \b
    Examples:
      phasecollapse evaluate runs/imagenette-64 datasets/imagenette
      phasecollapse evaluate runs/imagenette-64/checkpoints/epoch-00010 datasets/imagenette --flip --output results
    """
    with quick_imports():
        from data_prep.common import progress
        from data_prep.format.manifest import load_manifest
        from pipeline.figures import run_pictures
        from pipeline.inference import evaluation
        from pipeline.metrics import report
        from pipeline.runs import paths, trained_model

    pictures = (paths.CONFUSION, paths.MISTAKES)
    if output:
        report.check_folder(output, pictures)
    manifest = load_manifest(data)
    with _checkpoint(source, storage, uri) as checkpoint:
        total = manifest.splits[options["split"]].samples
        computing = evaluation.computing(gpu, bfloat16, threads)
        with progress.image_progress(total) as on_images, computing as place:
            result = evaluation.evaluate(checkpoint, data, evaluation.Options(**place, **options), on_images)
        settings = trained_model.describe(trained_model.find(checkpoint)).settings.data
    click.echo(report.to_json(result) if as_json else report.summary(result))
    if output:
        report.write(result, output)
        run_pictures.draw_evaluation(
            lambda: result, data, settings, output, lambda problem: click.echo(f"warning: {problem}", err=True)
        )
    if output and not as_json:
        click.echo(f"JSON, CSV, confusion matrix and worst mistakes: {output}")


@click.command(short_help="Predict the classes of image files with a trained network.")
@click.argument("source", type=_Source())
@click.argument("images", nargs=-1, required=True, type=LocalPath())
@click.option("--top", type=click.IntRange(1), default=5, help="Classes per image [5].")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Images per forward pass [64].")
@click.option("--storage", type=LocalPath(), help=STORAGE)
@click.option("--uri", help=URI)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON per image, for programs.")
def predict(
    source: str,
    images: tuple[Path, ...],
    top: int,
    batch_size: int,
    storage: Path | None,
    uri: str | None,
    as_json: bool,
) -> None:
    """Prints the most probable classes of IMAGES, which are files, or folders that are searched at any depth.

    SOURCE is the folder of a run (its latest checkpoint) or of one checkpoint, or a model in MLflow such as
    models:/NAME@ALIAS, as for 'evaluate'. A file that cannot be read is named and skipped; the exit status is then 1.

    \b
    Examples:
      phasecollapse predict runs/imagenette-64 photo.jpg
      phasecollapse predict runs/imagenette-64 holiday/ --top 1 --json > holiday.jsonl
    """
    with quick_imports():
        from data_prep.common import progress
        from pipeline.inference import prediction

    found = prediction.find(images)
    for sentence in found.passed_over:
        click.echo(f"warning: {sentence}", err=True)
    with _checkpoint(source, storage, uri) as checkpoint, progress.image_progress(len(found.files)) as on_images:
        show = prediction.to_json if as_json else prediction.to_row
        unreadable = 0
        for one in prediction.predict(checkpoint, found.files, top=top, batch_size=batch_size):
            click.echo(show(one))
            unreadable += one.problem is not None
            on_images(1)
    if unreadable:
        click.echo(f"{unreadable} of {count_of(len(found.files), 'file')} cannot be read", err=True)
        sys.exit(1)


@click.command(short_help="Export a trained network to one file, for ONNX Runtime or torch.export.")
@click.argument("source", type=_Source())
@click.option("--format", "kind", type=click.Choice(["onnx", "torch-export"]), default="onnx", help="Format [onnx].")
@click.option("--output", type=LocalPath(), help="File [named after SOURCE, in the current folder].")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--storage", type=LocalPath(), help=STORAGE)
@click.option("--uri", help=URI)
def export(source: str, kind: str, output: Path | None, force: bool, storage: Path | None, uri: str | None) -> None:
    """Exports the network of SOURCE to one file.

    SOURCE is the folder of a run (its latest checkpoint) or of one checkpoint, or a model in MLflow, as for 'evaluate'.
    The file maps pixels, uint8 (batch, height, width, 3), to logits, and holds the names of the classes. It is run and
    compared with the network before it gets its name.

    \b
    Examples:
      phasecollapse export runs/textures
      phasecollapse export runs/textures/checkpoints/epoch-00003 --format torch-export --output textures.pt2
    """
    with quick_imports():
        from data_prep.common import progress
        from pipeline.inference import export as exporting

    if output is None and source.startswith(REFERENCES):
        output = Path(re.sub("[:/@]+", "-", source) + exporting.SUFFIXES[kind])
    with _checkpoint(source, storage, uri) as checkpoint, progress.phase_display() as on_phase:
        written = exporting.export(checkpoint, kind, output, replace=force, on_phase=on_phase)
    click.echo(exporting.summary(written))


@click.command(short_help="Register a run's best or last checkpoint as a model, under a name and an alias.")
@click.argument("run", type=_Source())
@click.argument("name")
@click.option("--alias", help="Alias of this version, such as champion; another version of NAME loses it.")
@click.option("--which", type=click.Choice(["best", "last"]), default="best", help="Checkpoint [best].")
@click.option("--storage", type=LocalPath(), help="Folder of the runs, for runs:/ID [runs].")
@click.option("--uri", help="Tracking store [the one of the run].")
def register(run: str, name: str, alias: str | None, which: Which, storage: Path | None, uri: str | None) -> None:
    """Registers a checkpoint of RUN as the next version of the model NAME in MLflow.

    RUN is the folder of a run, or runs:/ID. The best checkpoint is the one with the highest top-1 accuracy of those
    that the run keeps (checkpoint.keep_best). A checkpoint that is a version of NAME already stays that version, and
    gets the alias. 'predict', 'evaluate', 'export' and start.checkpoint take the model as models:/NAME@ALIAS,
    models:/NAME/VERSION or models:/NAME (the latest version); MLflow serves it.

    \b
    Examples:
      phasecollapse register runs/imagenette-64 imagenette --alias champion
      phasecollapse predict models:/imagenette@champion photo.jpg
    """
    with quick_imports():
        from pipeline.tracking.mlflow_store import registry

    done = registry.register(run, name, which=which, alias=alias, storage=storage, uri=uri)
    state = "is now" if done.new else "is already"
    click.echo(f"{done.checkpoint} of {run} {state} version {done.version} of {name}")
    if alias:
        click.echo(f"alias {alias}: models:/{name}@{alias}")
