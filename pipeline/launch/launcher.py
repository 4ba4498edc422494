"""Trains and tracks a run, given its settings.

Checks everything that can be checked before workers start, locks the run's folder, and runs the workers while MLflow
and the display follow what they write there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_prep.common import ray_cluster
from data_prep.common.errors import UserError
from data_prep.common.ray_cluster import Connection
from data_prep.format.manifest import Manifest, load_manifest
from data_prep.loading import ffcv_reader
from pipeline import models
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.config.settings_io import flatten, to_yaml
from pipeline.launch import initial_weights, pictures, run_plan
from pipeline.runs import history, paths, run_folder
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.status import failure_recorded
from pipeline.runtime import malloc, system_info
from pipeline.tracking import tensorboard
from pipeline.tracking.display import Display
from pipeline.tracking.mlflow_store import addresses
from pipeline.tracking.mlflow_store.run import Tracker, open_run
from pipeline.tracking.mlflow_store.store import store_of
from pipeline.tracking.watcher import RunWatcher
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import finetune, trainer
from pipeline.training.context import LocalContext, WorkerSpec
from pipeline.training.dataloader import ImageStream, Subset

if TYPE_CHECKING:
    from ray.train import UserCallback


TRAIN_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""Interval at which Ray Train polls its workers: the report of an epoch waits for it."""


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    folder: Path
    epochs: int
    metrics: dict[str, float]
    """Metrics of the last epoch."""
    run_id: str
    """Id of the run in MLflow."""
    already_finished: bool
    """Whether the run had finished before."""


def train(
    settings: Settings,
    *,
    parent_run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[UserCallback] = (),
    progress: bool = True,
    profile: bool = False,
) -> Outcome:
    """Trains a run to its end, from its latest checkpoint.

    A finished run is not changed, unless it is given more epochs.

    In a Ray process (a Tune trial), the existing connection to the cluster is used.

    Args:
        settings: of the run.
        parent_run_id: MLflow run to nest this one under.
        tags: further tags of the MLflow run.
        callbacks: for Ray Train's controller; they get the metrics of each epoch after its checkpoint is stored.
        progress: show epochs and time left on standard output.
        profile: write a profile of a few steps into the run's folder.

    Raises:
        UserError: an error that the user can correct, see the functions that are called here.
        KeyboardInterrupt: the user stopped the run; the same call resumes it.
    """
    settings = _absolute(settings)
    data = load_manifest(Path(settings.data.path))
    named = Path(settings.run.storage) / settings.run.name if settings.run.name else None
    with initial_weights.fetched(settings, named) as local, ExitStack() as cluster_left_last:
        starting_point = initial_weights.describe(check(local, data), settings)
        folder = cluster_left_last.enter_context(run_folder.claim(settings, data, finetune.digest(local)))
        finished_before = folder.finished()
        connection = Connection()
        if settings.cluster.workers and not finished_before:
            if progress:
                count = settings.cluster.workers
                print(f"starting {count} worker{'s' * (count > 1)} on Ray", flush=True)
            connection = cluster_left_last.enter_context(cluster_with_room(settings.cluster))
        folder.begin()  # after all checks: a refused run leaves no folder
        local = initial_weights.keep(settings, local, folder.path)
        tracker = _open_tracked_run(folder, parent_run_id, tags or {}, settings)
        if not (finished_before and tracker.finished):
            with (
                _status(tracker, folder),
                _followed(folder, tracker, starting_point, shown=progress and not finished_before),
                tensorboard.written(folder.path, settings, ProgressWriter(folder.path).event),
                pictures.drawn(folder.path, settings),
            ):
                if not finished_before:
                    with failure_recorded(folder.path):
                        _run_workers(WorkerSpec(local, folder, profile), callbacks, connection)
        records = folder.history()
        return Outcome(folder.path, len(records), records[-1].metrics, tracker.run_id, finished_before)


def check(settings: Settings, data: Manifest) -> finetune.Start | None:
    """Checks settings against the data set, the checkpoint to start from and, without a cluster, this machine.

    Returns:
        The initial weights; None if they are new, or if the run resumes and those are gone.

    Raises:
        UserError: names the setting that does not fit.
    """
    classes = settings.data.classes
    if classes is not None and classes != len(data.classes):
        raise UserError(
            f"data.classes is {classes}, but the data set in {settings.data.path} has {len(data.classes)} classes: "
            "correct it, or unset it"
        )
    if settings.data.digest and not data.digest.startswith(settings.data.digest):
        raise UserError(
            f"data.digest is {settings.data.digest}, but the data set in {settings.data.path} has {data.digest}: "
            "correct data.path, or unset data.digest"
        )
    # Raises a UserError if the images are too small for a block.
    models.multiply_adds(settings.model, len(data.classes), settings.data.image_size)
    images = data.splits["train"].samples
    if images < 2 * max(1, settings.cluster.workers):
        raise UserError(
            f"the data set in {settings.data.path} has {images} training images, too few for "
            f"{settings.cluster.workers} workers: lower cluster.workers"
        )
    if settings.data.reader == "ffcv":
        ffcv_reader.check_split(Path(settings.data.path), data.splits["train"])
    tensorboard.check(settings)
    subsets: tuple[Subset, ...] = ("train", settings.data.evaluate_on)
    for subset in subsets:  # raises what the workers would; stock FFCV's loader needs their process group
        ImageStream(
            Path(settings.data.path),
            settings.data.model_copy(update={"reader": "native"}),
            subset,
            batch_size=settings.training.batch_size,
            seed=settings.training.seed,
            world_size=max(1, settings.cluster.workers),
        )
    if settings.cluster.gpu and settings.cluster.workers == 0 and not torch.cuda.is_available():
        raise UserError("cluster.gpu is true, but torch sees no GPU on this machine: set it to false")
    return finetune.check(settings, data.classes)


def dry_run(settings: Settings) -> run_plan.Plan:
    """The plan of a run, after every check that needs no worker; writes nothing.

    The size of the cluster is checked only if it is running already (`cluster.address`).

    Raises:
        UserError: names the setting that does not fit.
    """
    settings = _absolute(settings)
    data = load_manifest(Path(settings.data.path))
    with initial_weights.fetched(settings, None) as local:
        check(local, data)
        run_folder.check(settings, data, finetune.digest(local))
    if settings.cluster.workers and (settings.cluster.address or os.environ.get("RAY_ADDRESS")):
        with cluster_with_room(settings.cluster):
            pass
    return run_plan.plan(settings, data)


@contextmanager
def cluster_with_room(settings: ClusterSettings, *, dashboard: bool = False) -> Iterator[Connection]:
    """Joins or starts the cluster for the body, see `data_prep.common.ray_cluster.connect`.

    Raises:
        UserError: it is unreachable, or too small for the workers of `settings`.
    """
    from pipeline.launch import ray_train  # imports Ray, which a run in this process does not need

    with ray_cluster.connect(settings.address, TRAIN_ENVIRONMENT, dashboard=dashboard) as connection:
        ray_train.check_capacity(settings)
        yield connection


def _absolute(settings: Settings) -> Settings:
    """The same settings with absolute paths and the store that is meant, for workers, which run in other folders."""
    run = settings.run.model_copy(update={"storage": str(Path(settings.run.storage).absolute())})
    places = {"path": settings.data.path, "stage": settings.data.stage}
    absolute = {name: str(Path(place).absolute()) for name, place in places.items() if place}
    data = settings.data.model_copy(update=absolute)
    with_paths = {"run": run, "data": data, "start": settings.start.absolute()}
    return addresses.choose(settings).model_copy(update=with_paths)


def _open_tracked_run(
    folder: RunFolder, parent_run_id: str | None, tags: Mapping[str, str], settings: Settings
) -> Tracker:
    original = folder.identity.settings  # MLflow does not change parameters: those of the start
    digests = {"data.digest": folder.identity.data_digest}
    if folder.identity.start_digest:
        digests["start.digest"] = folder.identity.start_digest
    extended = {"training.epochs": str(original.training.epochs)} if folder.extended_from else {}
    tracker = open_run(
        store_of(settings),
        settings.tracking.experiment,
        identity=folder.identity.id,
        name=folder.path.name,
        folder=folder.path,
        parameters={**flatten(original), **digests},
        tags={**system_info.git_state(Path.cwd()), **extended, **tags},
        parent_run_id=parent_run_id,
        complete=folder.finished(),
    )
    if not tracker.finished:
        tracker.log_text(to_yaml(original), "settings.yaml")
    return tracker


@contextmanager
def _status(tracker: Tracker, folder: RunFolder) -> Iterator[None]:
    """Sets the status of the tracked run when the body ends; a finished run gets its final model and report."""
    try:
        yield
    except KeyboardInterrupt:
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    with suppress(OSError, ValueError):  # a finished run may have lost it
        tracker.tag(json.loads((folder.path / paths.ENVIRONMENT).read_text(encoding="utf-8")))
    tracker.log_models(folder.path)
    if (folder.path / paths.REPORT).is_dir():
        tracker.log_file(folder.path / paths.REPORT, paths.REPORT)
    tracker.end("FINISHED")


@contextmanager
def _followed(
    folder: RunFolder, tracker: Tracker, starting_point: finetune.Start | None, shown: bool
) -> Iterator[None]:
    """While the body runs, sends what workers write into the run's folder to MLflow and the display."""
    # Without a checkpoint, what the history says is lost.
    epochs, done = folder.identity.settings.training.epochs, len(folder.history()) if folder.latest_checkpoint() else 0
    display = Display(epochs, shown)
    state = f"resumes after epoch {done} of {epochs}" if done else f"starts, epochs: {epochs}"
    display.announce(f"run {folder.path.name} {state}")
    if folder.extended_from:
        display.announce(
            f"training.epochs: {folder.extended_from} → {epochs}: learning rate and image size follow the schedule of "
            f"{epochs} epochs from here on"
        )
    if starting_point and not done:
        display.announce(str(starting_point))

    def send(epochs: list[history.EpochRecord]) -> None:
        tracker.follow(epochs, history.read_steps(folder.path))

    with RunWatcher(folder.path, folder.history, send, display).watching():
        yield


def _run_workers(spec: WorkerSpec, callbacks: Sequence[UserCallback], connection: Connection) -> None:
    if spec.settings.cluster.workers == 0:
        _run_here(spec)
        return
    from pipeline.launch import ray_train

    ray_train.fit(spec, callbacks, connection)


def _run_here(spec: WorkerSpec) -> None:
    malloc.keep_freed_memory()
    threads = torch.get_num_threads()
    try:
        if not trainer.train_worker(spec, LocalContext(spec)):
            raise KeyboardInterrupt
    finally:
        torch.set_num_threads(threads)
