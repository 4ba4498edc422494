"""A run on Ray Train: its workers, their failures, its end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
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
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from data_prep.common.errors import UserError
from data_prep.common.ray_cluster import Connection
from pipeline.config.schema import ClusterSettings
from pipeline.runs import paths
from pipeline.runtime import malloc
from pipeline.tracking.writer import FILE as PROGRESS_FILE
from pipeline.tracking.writer import ProgressWriter
from pipeline.training.context import WorkerSpec
from pipeline.training.trainer import run_on_ray

ERROR_LOG = "error.log"
ATTEMPTS = "ray"
"""Folder of what Ray Train itself writes down, inside the run's; nobody needs it afterwards."""
ABORT_SECONDS = 30
UNUSED = ("DatasetsCallback",)
"""What Ray Train does beside a training and ours has no use for: each is a process that starts with the workers, and
wakes up a hundred times a second. This one hands out Ray's own data sets."""
OURS_TO_FREE = ("PlacementGroupCleanerCallback",)
"""The same, for what we do ourselves in a job of our own: it frees what a controller that died had reserved."""


def fit(job: WorkerSpec, callbacks: Sequence[UserCallback], connection: Connection) -> None:
    """Trains a run on the Ray cluster that this process is connected to, from its newest checkpoint to its end.

    Raises:
        UserError: a worker met an error that the user can mend, or workers failed more often than
            `cluster.max_failures` allows.
        KeyboardInterrupt: the user interrupted; the workers have saved, if there was time, and ended.
    """
    settings, folder = job.settings, job.folder
    stop = folder.path / paths.STOP
    stop.unlink(missing_ok=True)
    failures = settings.cluster.max_failures
    while True:
        trainer = _trainer(job, callbacks, connection)
        try:
            trainer.fit()
            return
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # a second one does not wait
                _wait_until_saved(folder.path, settings.checkpoint.grace_seconds)
            trainer.abort()
            raise
        except TrainingFailedError as error:
            raise _explain(error, folder.path) from None
        except ActorDiedError as error:  # of the controller; workers that die are its business
            if failures == 0:
                raise UserError(
                    f"the controller of the training died ({_sentence(str(error))}), and cluster.max_failures allows "
                    "no further restart: give the same command again"
                ) from None
            failures -= 1
            if connection.own_job:
                free_reservations()
            ProgressWriter(folder.path).event(
                "the controller of the training died: the run goes on from its newest checkpoint"
            )
        except RayError as error:
            raise UserError(f"the Ray cluster failed: {_sentence(str(error))}") from None
        finally:
            stop.unlink(missing_ok=True)
            shutil.rmtree(folder.path / ATTEMPTS, ignore_errors=True)


def free_reservations() -> list[str]:
    """Takes back all placement groups of this process's Ray job, whoever made them; returns their hexadecimal ids."""
    job: str = ray.get_runtime_context().get_job_id()
    table = placement_group_table()
    groups = [group for group, content in table.items() if group.endswith(job) and content["state"] != "REMOVED"]
    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
    return groups


def _trainer(job: WorkerSpec, callbacks: Sequence[UserCallback], connection: Connection) -> _Trainer:
    cluster, folder = job.settings.cluster, job.folder
    return _Trainer(
        connection,
        run_on_ray,
        train_loop_config={"spec": job},
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(cluster.min_workers, cluster.workers) if cluster.min_workers else cluster.workers,
            elastic_resize_monitor_interval_s=cluster.resize_seconds,
            use_gpu=cluster.gpu,
            resources_per_worker=_resources(cluster),
        ),
        run_config=RunConfig(
            name=ATTEMPTS,
            storage_path=str(folder.path),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            worker_runtime_env={"env_vars": {**malloc.ENVIRONMENT, **_interface(cluster)}},
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[_Restarts(folder.path), *callbacks],
        ),
    )


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to Python: what Ray's own handler raises, SystemExit, hides that the user asked for it. And leaves
    out some of what Ray Train adds to a training."""

    def __init__(self, connection: Connection, function: Callable[[dict[str, Any]], None], **options: Any) -> None:
        super().__init__(function, **options)
        self._connection = connection
        self._controller: Any = None

    def _create_default_callbacks(self) -> list[Any]:
        left_out = UNUSED + (OURS_TO_FREE if self._connection.own_job else ())
        there = super()._create_default_callbacks()
        return [each for each in there if type(each).__name__ not in left_out]

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        if self._connection.own_cluster and not self.scaling_config.elasticity_enabled:
            options["scaling_policy"] = _AsManyAsAsked(self.scaling_config)
        return super()._initialize_and_run_controller(**options)

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """Ends controller and workers."""
        if self._controller is not None:
            with suppress(RayError):  # the controller says that it died
                ray.get(self._controller.abort.remote(), timeout=ABORT_SECONDS)


class _AsManyAsAsked(FixedScalingPolicy):
    """Asks no autoscaler for nodes, which would take an actor of its own: a cluster of this program's has none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Does not register what the workers need."""

    def _maybe_send_resource_request(self) -> None:
        """Does not ask again, either."""


def _wait_until_saved(run: Path, seconds: float) -> None:
    """Asks the workers to save and end, and waits until they have, if they are at work at all."""
    if not (run / PROGRESS_FILE).exists():
        return
    stop = run / paths.STOP
    with suppress(OSError):
        stop.touch()
    deadline = time.monotonic() + seconds
    while stop.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def room(cluster: ClusterSettings) -> int:
    """How many workers the cluster's nodes would hold if they were free; a worker does not spread over nodes."""
    needed = _resources(cluster)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(node.get(name, 0) // amount for name, amount in needed.items())) for node in nodes)


def check_capacity(cluster: ClusterSettings) -> None:
    """Compares the workers that are asked for with the cluster's nodes: Ray would wait for them without a word.

    Raises:
        UserError: they do not fit.
    """
    needed, enough = _resources(cluster), cluster.min_workers or cluster.workers
    deadline = time.monotonic() + 60 * cluster.wait_minutes
    if room(cluster) < enough and cluster.wait_minutes:
        request_resources(bundles=[needed] * cluster.workers)
        try:
            while room(cluster) < enough and time.monotonic() < deadline:
                time.sleep(1)
        finally:
            request_resources(bundles=[])  # what has come is kept busy by the run itself
    fitting = room(cluster)
    if fitting < enough:
        there = ray.cluster_resources()
        raise UserError(
            f"cluster.workers: {cluster.workers} workers with "
            f"{' and '.join(f'{amount} {name}' for name, amount in needed.items())} each do not fit: the cluster has "
            f"{' and '.join(f'{there.get(name, 0):g} {name}' for name in needed)}, room for {fitting}; lower "
            "cluster.workers or cluster.cpus_per_worker, or give an autoscaler time: cluster.wait_minutes"
        )


class _Restarts(UserCallback):
    """Tells the user of workers that failed, and ends the run at an error that restarting them cannot mend, which Ray
    would try `max_failures` times. Runs in Ray's controller process."""

    def __init__(self, run: Path) -> None:
        self._notes = ProgressWriter(run)

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error
        for rank, error in worker_exceptions.items():
            self._notes.event(
                f"worker {rank} failed ({type(error).__name__}: {_sentence(str(error))}): the run goes on from its "
                "newest checkpoint, if cluster.max_failures allows"
            )


def _resources(cluster: ClusterSettings) -> dict[str, float]:
    """What each worker reserves."""
    return {"CPU": cluster.threads, "GPU": 1} if cluster.gpu else {"CPU": cluster.threads}


def _interface(cluster: ClusterSettings) -> dict[str, str]:
    """Variables by which NCCL and gloo choose their network interface."""
    name = cluster.network_interface
    return {"NCCL_SOCKET_IFNAME": name, "GLOO_SOCKET_IFNAME": name} if name else {}


def _explain(error: TrainingFailedError, folder: Path) -> UserError:
    """One sentence for the user; the whole story goes to a file in the run's folder."""
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, UserError):
        return error.controller_failure
    log = folder / ERROR_LOG
    with suppress(OSError):
        log.write_text(str(error), encoding="utf-8")
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = next(iter(error.worker_failures.items()))
        what = f"worker {rank} failed ({type(failure).__name__}: {_sentence(str(failure))})"
    else:
        what = f"training failed ({_sentence(str(error))})"
    return UserError(f"{what}, and cluster.max_failures allows no further restart: details in {log}")


def _sentence(text: str) -> str:
    """The first sentence of the last line: there Python's and Ray's errors say what happened."""
    line = text.strip().splitlines()[-1] if text.strip() else "no message"
    return line.strip().split(". ")[0].rstrip(".")[:200]
