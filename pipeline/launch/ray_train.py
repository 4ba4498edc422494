"""Runs on Ray Train: starts the workers, replaces those that fail, and ends them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorDiedError, RayError
from ray.train import (
    ControllerError,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
    WorkerGroupError,
)
from ray.train.torch import TorchConfig

from data_prep.common import ray_internals
from data_prep.common.errors import UserError, count_of
from data_prep.common.ray_cluster import Connection
from pipeline.config.schema import ClusterSettings
from pipeline.launch import ray_cleanup
from pipeline.runs import paths
from pipeline.runtime import malloc
from pipeline.tracking.writer import ProgressWriter
from pipeline.training.context import WorkerSpec
from pipeline.training.trainer import run_on_ray

ROUNDING = 1e-9
"""1 / 0.2 may be a little less than 5."""


def fit(spec: WorkerSpec, callbacks: Sequence[UserCallback], connection: Connection) -> None:
    """Trains a run on the Ray cluster that this process is connected to, from its newest checkpoint to its end.

    Raises:
        UserError: a worker met an error that the user can fix, or workers failed more often than
            `cluster.max_failures` allows.
        KeyboardInterrupt: the user interrupted. The workers have ended, and saved within `checkpoint.grace_seconds`.
    """
    stop = spec.folder.path / paths.STOP
    stop.unlink(missing_ok=True)
    try:
        _fit(spec, callbacks, connection, stop)
    finally:
        if connection.own_job and not connection.own_cluster:
            ray_cleanup.leave()


def _fit(spec: WorkerSpec, callbacks: Sequence[UserCallback], connection: Connection, stop: Path) -> None:
    settings, folder = spec.settings, spec.folder
    failures = settings.cluster.max_failures
    while True:
        trainer, abort = _trainer(spec, callbacks, connection)
        try:
            trainer.fit()
            return
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # a second one does not wait
                _wait_until_saved(folder.path, settings.checkpoint.grace_seconds)
            abort()
            raise
        except TrainingFailedError as error:
            raise explain(error, folder.path) from None
        except ActorDiedError as error:  # of the controller, which itself replaces workers that die
            if failures == 0:
                raise UserError(
                    f"the controller of the training died ({_sentence(str(error))}), and cluster.max_failures allows "
                    "no further restart: rerun the same command to resume"
                ) from None
            failures -= 1
            if connection.own_job:
                ray_cleanup.free_reservations()
            ProgressWriter(folder.path).event(
                "the controller of the training died: resuming from the latest checkpoint"
            )
        except RayError as error:
            raise UserError(f"the Ray cluster failed: {_sentence(str(error))}") from None
        finally:
            stop.unlink(missing_ok=True)
            shutil.rmtree(folder.path / paths.ATTEMPTS, ignore_errors=True)


def _trainer(
    spec: WorkerSpec, callbacks: Sequence[UserCallback], connection: Connection
) -> tuple[Any, Callable[[], None]]:
    """The trainer of Ray Train, and a function that aborts its run."""
    cluster, folder = spec.settings.cluster, spec.folder
    cleanup = ray_internals.CLEANUP_CALLBACKS if connection.own_job else ()
    return ray_internals.build_torch_trainer(
        run_on_ray,
        left_out={*ray_internals.UNUSED_CALLBACKS, *cleanup},
        train_loop_config={"spec": spec},
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if cluster.min_workers else cluster.workers,
            elastic_resize_monitor_interval_s=cluster.resize_seconds,
            use_gpu=cluster.gpu,
            resources_per_worker=resources(cluster),
        ),
        run_config=RunConfig(
            name=paths.ATTEMPTS,
            storage_path=str(folder.path),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": {**malloc.ENVIRONMENT, **_interface(cluster)}},
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[FailureReporter(folder.path), *callbacks, *_elastic_callbacks(spec)],
        ),
    )


def _elastic_callbacks(spec: WorkerSpec) -> list[Any]:
    """Saves the state of an elastic run before its workers are restarted in another number."""
    if spec.settings.cluster.min_workers is None:
        return []
    run, seconds = spec.folder.path, spec.settings.checkpoint.grace_seconds

    def save() -> None:
        ProgressWriter(run).event("the number of workers changes: saving the state of the run")
        _wait_until_saved(run, seconds, paths.SAVE)
        (run / paths.SAVE).unlink(missing_ok=True)

    return [ray_internals.before_resize(save)]


def _wait_until_saved(run: Path, seconds: float, request: str = paths.STOP) -> None:
    """Asks the workers to save (and stop), and waits until they have, if they have started to train."""
    if not (run / paths.PROGRESS).exists():
        return
    file = run / request
    with suppress(OSError):
        file.touch()
    deadline = time.monotonic() + seconds
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def room(needed: Mapping[str, float]) -> int:
    """Number of processes with these resources that fit on the cluster's nodes if these are idle; each runs on one
    node."""
    return sum(room_on(node["Resources"], needed) for node in ray.nodes() if node["Alive"])


def room_on(machine: Mapping[str, float], needed: Mapping[str, float]) -> int:
    """Number of processes with these resources that fit on one machine; a share of a GPU lies on a single GPU."""
    return min(
        int(machine.get(name, 0)) * int(1 / amount + ROUNDING) if amount < 1 else int(machine.get(name, 0) // amount)
        for name, amount in needed.items()
    )


def check_capacity(cluster: ClusterSettings) -> None:
    """Compares the requested workers with the cluster's nodes: Ray would wait for them without a message.

    Raises:
        UserError: they do not fit.
    """
    needed, enough = resources(cluster), cluster.min_workers or cluster.workers
    deadline = time.monotonic() + 60 * cluster.wait_minutes
    if room(needed) < enough and cluster.wait_minutes:
        request_resources(bundles=[needed] * cluster.workers)
        try:
            while room(needed) < enough and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            request_resources(bundles=[])  # the run keeps the new nodes busy
    fitting = room(needed)
    if fitting < enough:
        there = ray.cluster_resources()
        if cluster.gpu and not there.get("GPU"):
            raise UserError(
                "cluster.gpu is true, but the cluster has no GPU: set it to false, or join a cluster with GPUs by "
                "cluster.address"
            )
        raise UserError(
            f"cluster.workers: {count_of(cluster.workers, 'worker')} with "
            f"{' and '.join(f'{amount} {name}' for name, amount in needed.items())} each: too many, as the cluster has "
            f"{' and '.join(f'{there.get(name, 0):g} {name}' for name in needed)}, room for {fitting}; lower "
            "cluster.workers or cluster.cpus_per_worker, or give an autoscaler time: cluster.wait_minutes"
        )


class FailureReporter(UserCallback):
    """Reports failed workers to the user, and ends the run at errors that a restart cannot fix, for which Ray would
    restart the workers `max_failures` times. Runs in Ray's controller process."""

    def __init__(self, run: Path) -> None:
        self._progress = ProgressWriter(run)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
        for rank, error in worker_exceptions.items():
            self._progress.event(
                f"worker {rank} failed ({type(error).__name__}: {_sentence(str(error))}): resuming from the "
                "latest checkpoint, if cluster.max_failures allows"
            )


def resources(cluster: ClusterSettings) -> dict[str, float]:
    """Resources that each worker reserves."""
    return {"CPU": cluster.threads, "GPU": 1} if cluster.gpu else {"CPU": cluster.threads}


def _interface(cluster: ClusterSettings) -> dict[str, str]:
    """Environment variables that select the network interface of NCCL and gloo."""
    name = cluster.network_interface
    return {"NCCL_SOCKET_IFNAME": name, "GLOO_SOCKET_IFNAME": name} if name else {}


def explain(error: TrainingFailedError, folder: Path) -> UserError:
    """The error in one sentence; details are in a note, for the log in the run's folder."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
        return error.controller_failure
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = next(iter(error.worker_failures.items()))
        cause = f"worker {rank} failed ({type(failure).__name__}: {_sentence(str(failure))})"
    else:
        cause = f"training failed ({_sentence(str(error))})"
    log = folder / paths.ERROR_LOG
    explained = UserError(f"{cause}, and cluster.max_failures allows no further restart: details in {log}")
    explained.add_note(str(error))
    return explained


def _sentence(text: str) -> str:
    """The first sentence of the last line of an error, where Python and Ray state the cause."""
    line = text.strip().splitlines()[-1] if text.strip() else "no message"
    return line.strip().split(". ")[0].rstrip(".")[:200]
