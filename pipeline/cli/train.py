"""The commands ``train``, ``describe`` and ``ui``. Slow imports happen when a command runs."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from data_prep.cli.local_path import LocalPath
from data_prep.common.errors import count_of
from pipeline.runtime.imports import quick_imports

if TYPE_CHECKING:
    from pipeline.launch.launcher import Outcome

Command = TypeVar("Command", bound=Callable[..., Any])


def explains_settings(tree: str) -> Callable[[Command], Command]:
    """Adds the option --settings, which explains every setting of a tree; `tree` is its class, as module:class."""

    def show(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
        if asked:
            from pipeline.config.settings_io import explain

            click.echo_via_pager(explain(pkgutil.resolve_name(tree)).strip())
            context.exit()

    words = "Explain every setting, with its default."
    return click.option("--settings", is_flag=True, is_eager=True, expose_value=False, callback=show, help=words)


@click.command(short_help="Train a network on a prepared data set; run again to resume.")
@click.argument("config", type=LocalPath())
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@explains_settings("pipeline.config.schema:Settings")
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan, without training.")
@click.option("--profile", is_flag=True, help="Write a torch.profiler trace of a few steps into the run's folder.")
def train(config: Path, overrides: tuple[str, ...], dry_run: bool, profile: bool) -> None:
    """Trains the run that the YAML file CONFIG describes; SECTION.FIELD=VALUE overrides single settings.

    A run is stored in the folder run.storage/run.name. The same command resumes an interrupted run from its latest
    checkpoint, and leaves a finished run unchanged, unless training.epochs is larger now. Ctrl-C saves a checkpoint
    first; a second Ctrl-C does not wait.

    \b
    Examples:
      phasecollapse train configs/imagenette_64.yaml
      phasecollapse train configs/imagenette_64.yaml model.skip=true 'model.widths=[32, 64, 64]'
      phasecollapse train configs/imagenette_64.yaml --dry-run
      phasecollapse train configs/imagenette_64.yaml cluster.workers=8 cluster.gpu=true training.precision=bfloat16
    """
    from pipeline.config import settings_io as settings_tree

    with quick_imports():
        settings = settings_tree.load(config, overrides)  # imports the packages that register what it names
        from pipeline.launch import launcher, run_plan
        from pipeline.runtime import system_info
        from pipeline.tracking.mlflow_store import addresses

    if warning := system_info.warning(settings.training.precision, settings.cluster.gpu):
        click.echo(f"warning: {warning}", err=True)
    if settings.data.reader == "ffcv":
        click.echo(
            "warning: data.reader is ffcv: damaged images are not noticed, and a resumed run does not end with the "
            "same bits",
            err=True,
        )
    if dry_run:
        plan = launcher.dry_run(settings)
        click.echo(str(plan))
        if sentence := run_plan.shortage(settings.cluster):
            click.echo(f"warning: {sentence}", err=True)
        click.echo(run_plan.describe_speed(settings, plan))
        return
    outcome = launcher.train(settings, profile=profile)
    click.echo(summary(outcome, settings.data.evaluate_on))
    click.echo(f"curves and settings: {addresses.ui_command(settings)}")


def summary(outcome: Outcome, measured_on: str) -> str:
    """The result of a run, in two lines."""
    top1, top5 = (100 * outcome.metrics[f"{measured_on}/{name}"] for name in ("top1", "top5"))
    state = "had already finished" if outcome.already_finished else "finished"
    return (
        f"run {outcome.folder.name} {state}: {count_of(outcome.epochs, 'epoch')}, "
        f"{measured_on} top-1 {top1:.2f} %, top-5 {top5:.2f} %\n"
        f"folder: {outcome.folder}"
    )


@click.command(short_help="Show a network's layers, parameters and costs; needs no data set.")
@click.argument("config", type=LocalPath())
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option("--classes", type=click.IntRange(1), help="Number of classes [data.classes, or that of the data set].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def describe(config: Path, overrides: tuple[str, ...], classes: int | None, as_json: bool) -> None:
    """Shows the network of the run that the YAML file CONFIG describes, without training it.

    A row is a layer. "learned" and "fixed" count parameters and constants, complex ones as two; running statistics are
    neither. "necessary" are millions of multiply-adds per image by closed forms, with wavelet transforms by fast
    Fourier transforms; "executed" are those that torch counts, in matrix products and convolutions. Element-wise
    operations (a modulus, a normalization) are in neither. "kept" is the memory per image that is kept for the backward
    pass, in training.precision. "flags" are learned spatial filters and learned biases before the classifier.

    \b
    Examples:
      phasecollapse describe configs/imagenette_64.yaml
      phasecollapse describe configs/imagenette_64.yaml data.image_size=224 --classes 1000
    """
    from pipeline.config import settings_io as settings_tree

    with quick_imports():
        settings = settings_tree.load(config, overrides)  # imports the packages that register what it names
        from data_prep.common import progress
        from pipeline.analysis.model_summary import describe as described
        from pipeline.analysis.model_summary import render

    description = described(settings, classes)
    if as_json:
        click.echo(description.to_json())
    else:
        progress.show(*render(description), width=200)


@click.command(short_help="Show tracked runs in the browser (MLflow), on this machine only unless --host says more.")
@click.option("--storage", type=LocalPath(), help="Folder of the runs [runs].")
@click.option("--uri", help="Tracking store or server [MLFLOW_TRACKING_URI, or the store inside --storage].")
@click.option("--port", type=click.IntRange(0, 65535), help="Port [5000, or a free one].")
@click.option(
    "--host", default="127.0.0.1", help="Interface to listen on; others than loopback need --auth [127.0.0.1]."
)
@click.option(
    "--allowed-hosts", metavar="NAME,…", help="Names under which browsers reach the pages, besides localhost."
)
@click.option("--prefix", metavar="/PATH", help="Path before all addresses, for a reverse proxy that keeps it.")
@click.option("--auth", is_flag=True, help="Ask for user and password; makes the user admin the first time.")
def ui(storage: Path | None, uri: str | None, **options: Any) -> None:
    """Serves MLflow's pages, opened on the table of the runs, and prints their address, until Ctrl-C.

    A tracking server (http://…) has its own pages: then only their address is printed. Either gets three views of the
    runs in its menu "Views": a table of runs, one of the trials of searches, and charts.

    Ports forwarded by SSH or an editor work, under any port. Behind a reverse proxy, name its host with --allowed-hosts
    and, if it keeps a path, that with --prefix. With --auth, users and the administrator's password lie in the folder
    mlflow-auth of --storage, readable by you alone; training then needs MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD.

    \b
    Examples:
      phasecollapse ui
      phasecollapse ui --storage /mnt/runs --port 8080
      phasecollapse ui --host 0.0.0.0 --auth --allowed-hosts gpu1.example.org
    """
    from pipeline.tracking.mlflow_store import store
    from pipeline.tracking.mlflow_store.pages import server

    found = store.named_store(storage, uri)
    server.serve(found, server.Access(folder=(storage or Path("runs")), **options), announce=click.echo)
