"""Trains and tracks a run, given its settings.

Checks everything that can be checked before workers start, locks the run's folder, and runs the workers while MLflow
and the display follow what they write there.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from data_prep.common import ray_cluster
from data_prep.common.errors import UserError, count_of
from data_prep.common.ray_cluster import Connection
from data_prep.format.manifest import Manifest, load_manifest
from data_prep.loading import ffcv_reader
from pipeline import models
from pipeline.config.schema import ClusterSettings, Settings
from pipeline.launch import initial_weights, pictures, run_plan, tracked_run
from pipeline.runs import run_folder
from pipeline.runs.run_folder import RunFolder
from pipeline.runs.status import failure_recorded
from pipeline.runtime import malloc
from pipeline.tracking import tensorboard
from pipeline.tracking.delivery import Delivery, undelivered
from pipeline.tracking.display import Display
from pipeline.tracking.mlflow_store import addresses
from pipeline.tracking.mlflow_store.errors import Origin
from pipeline.tracking.mlflow_store.store import check as check_store
from pipeline.tracking.mlflow_store.store import store_of
from pipeline.tracking.run_delivery import RunDelivery
from pipeline.tracking.watcher import RunWatcher
from pipeline.tracking.writer import ProgressWriter
from pipeline.training import finetune, trainer
from pipeline.training.context import EpochReport, LocalContext, WorkerSpec
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
    run_id: str | None
    """Id of the run in MLflow; None if the store has not answered yet."""
    already_finished: bool
    """Whether the run had finished before."""


def train(
    settings: Settings,
    *,
    in_search: bool = False,
    tags: Mapping[str, str] | None = None,
    callbacks: Sequence[UserCallback] = (),
    report_here: EpochReport | None = None,
    progress: bool = True,
    profile: bool = False,
) -> Outcome:
    """Trains a run to its end, from its latest checkpoint.

    A finished run is not changed, unless it is given more epochs.

    In a Ray process (a Tune trial), the existing connection to the cluster is used.

    Args:
        settings: of the run.
        in_search: the run is a trial in the folder of a search, whose process delivers it to MLflow.
        tags: further tags of the MLflow run.
        callbacks: for Ray Train's controller; they get the metrics of each epoch after its checkpoint is stored.
        report_here: for a run of one worker, in a process that has the resources of that worker already: trains there,
            without Ray Train, and calls this after each epoch.
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
        if settings.cluster.workers and not finished_before and report_here is None:
            if progress:
                print(f"starting {count_of(settings.cluster.workers, 'worker')} on Ray", flush=True)
            connection = cluster_left_last.enter_context(cluster_with_room(settings.cluster))
        check_store(store := store_of(settings))
        _begin(folder, progress)  # after all checks: a refused run leaves no folder
        local = initial_weights.keep(settings, local, folder.path)
        had_ended = tracked_run.begin(folder, settings, data, tags or {}, in_search)
        with ExitStack() as until_the_end:
            if not in_search:
                until_the_end.enter_context(_delivered(folder.path, store.origin, progress))
            if not had_ended:
                until_the_end.enter_context(tracked_run.status(folder))
                until_the_end.enter_context(_shown(folder, starting_point, shown=progress and not finished_before))
                on_problem = ProgressWriter(folder.path).event
                until_the_end.enter_context(tensorboard.written(folder.path, settings, on_problem))
                until_the_end.enter_context(pictures.drawn(folder.path, settings))
            if not finished_before:
                with failure_recorded(folder.path):
                    spec = WorkerSpec(local, folder, profile)
                    if report_here is not None or settings.cluster.workers == 0:
                        _run_here(spec, report_here)
                    else:
                        _run_on_ray(spec, callbacks, connection)
        records = folder.history()
        run_id = RunDelivery(folder.path).run_id()
        return Outcome(folder.path, len(records), records[-1].metrics, run_id, finished_before)


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
            f"data.classes is {classes}, but the data set in {settings.data.path} has "
            f"{count_of(len(data.classes), 'class')}: correct it, or unset it"
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
            f"the data set in {settings.data.path} has {count_of(images, 'training image')}, too few for "
            f"{count_of(max(1, settings.cluster.workers), 'worker')}: lower cluster.workers"
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


def _begin(folder: RunFolder, progress: bool) -> None:
    for sentence in folder.begin():
        ProgressWriter(folder.path).event(sentence)
        if progress:
            print(sentence, flush=True)


def _delivered(folder: Path, origin: Origin, progress: bool) -> AbstractContextManager[None]:
    """Delivers a run to its tracking store during the body, and what earlier commands have left beside it."""
    announce = functools.partial(print, flush=True) if progress else lambda line: None
    return Delivery([folder], lambda: undelivered(folder.parent, besides=[folder]), announce, origin).running()


@contextmanager
def _shown(folder: RunFolder, starting_point: finetune.Start | None, shown: bool) -> Iterator[None]:
    """While the body runs, shows what workers write into the run's folder."""
    # Without a checkpoint, what the history says is lost.
    epochs, done = folder.identity.settings.training.epochs, len(folder.history()) if folder.latest_checkpoint() else 0
    display = Display(epochs, shown)
    state = f"resumes after epoch {done} of {epochs}" if done else f"starts, epochs: {epochs}"
    display.announce(f"run {folder.path.name} {state}")
    if folder.extended_from:
        display.announce(
            f"training.epochs: {folder.extended_from} → {epochs}: learning rate and image size follow the schedule of "
            f"{count_of(epochs, 'epoch')} from here on"
        )
    if starting_point and not done:
        display.announce(str(starting_point))

    with RunWatcher(folder.path, folder.history, display).watching():
        yield


def _run_on_ray(spec: WorkerSpec, callbacks: Sequence[UserCallback], connection: Connection) -> None:
    from pipeline.launch import ray_train  # imports Ray, which a run in this process does not need

    ray_train.fit(spec, callbacks, connection)


def _run_here(spec: WorkerSpec, report: EpochReport | None) -> None:
    malloc.keep_freed_memory()
    threads = torch.get_num_threads()
    try:
        if not trainer.train_worker(spec, LocalContext(spec, report)):
            raise KeyboardInterrupt
    finally:
        torch.set_num_threads(threads)
