"""A run on Ray Train: its workers, its checkpoints, its failures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import (
    Checkpoint,
    CheckpointConfig,
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

from data_prep.errors import UserError
from pipeline import allocator, history, worker
from pipeline.run_folder import RunFolder
from pipeline.settings import ClusterSettings, Settings

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray's list of the checkpoints, in the folder of the checkpoints."""
ERROR_LOG = "error.log"
ABORT_SECONDS = 30


def fit(settings: Settings, folder: RunFolder, callbacks: Sequence[UserCallback] = ()) -> None:
    """Trains a run on the Ray cluster that this process is connected to, from its last checkpoint to its end.

    Raises:
        UserError: a worker met an error that the user can mend, or workers failed more often than
            `cluster.max_failures` allows.
        KeyboardInterrupt: the user interrupted; the workers have ended.
    """
    _mend_snapshot(folder.checkpoints)
    cluster = settings.cluster
    trainer = _Trainer(
        worker.run_on_ray,
        train_loop_config={"job": worker.Job(settings, folder)},
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers, use_gpu=cluster.gpu, resources_per_worker=_resources(cluster)
        ),
        run_config=RunConfig(
            # The same name under the same path makes Ray continue from the last checkpoint.
            name=folder.checkpoints.name,
            storage_path=str(folder.path),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=worker.CHECKPOINTS_KEPT),
            worker_runtime_env={"env_vars": allocator.ENVIRONMENT},
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[_Committed(folder), _GiveUp(), *callbacks],
        ),
    )
    try:
        trainer.fit()
    except KeyboardInterrupt:
        trainer.abort()
        raise
    except TrainingFailedError as error:
        raise _explain(error, folder.path) from None
    except RayError as error:
        raise UserError(f"the Ray cluster failed: {_sentence(str(error))}") from None


class _Trainer(TorchTrainer):
    """Leaves Ctrl-C to Python: what Ray's own handler raises, SystemExit, hides that the user asked for it."""

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self._controller = controller

    def abort(self) -> None:
        """Ends controller and workers."""
        if self._controller is not None:
            with suppress(RayError):  # the controller says that it died
                ray.get(self._controller.abort.remote(), timeout=ABORT_SECONDS)


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
    needed, fitting = _resources(cluster), room(cluster)
    if fitting < cluster.workers:
        there = ray.cluster_resources()
        raise UserError(
            f"cluster.workers: {cluster.workers} workers with "
            f"{' and '.join(f'{amount} {name}' for name, amount in needed.items())} each do not fit: the cluster has "
            f"{' and '.join(f'{there.get(name, 0):g} {name}' for name in needed)}, room for {fitting}; lower "
            "cluster.workers or cluster.cpus_per_worker, or let the cluster grow first (autoscalers are not asked)"
        )


class _Committed(UserCallback):
    """Shows an epoch in the run's folder once Ray has registered its checkpoint. Runs in Ray's controller process."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            history.write(self._folder.path, history.read(Path(checkpoint.path)))
            shutil.copyfile(self._folder.checkpoints / SNAPSHOT, self._folder.checkpoints / f"{SNAPSHOT}.previous")


class _GiveUp(UserCallback):
    """Ends the run at an error that restarting workers cannot mend, which Ray would try `max_failures` times."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise error


def _resources(cluster: ClusterSettings) -> dict[str, float]:
    """What each worker reserves."""
    return {"CPU": cluster.cpus_per_worker, "GPU": 1} if cluster.gpu else {"CPU": cluster.cpus_per_worker}


def _mend_snapshot(checkpoints: Path) -> None:
    """Puts the previous snapshot back if the last one was cut short, as Ray writes over it in place.

    The checkpoints that the previous one names are still there: Ray removes old ones after it wrote the last.
    """
    previous = checkpoints / f"{SNAPSHOT}.previous"
    if previous.exists() and not _is_whole(checkpoints / SNAPSHOT):
        shutil.copyfile(previous, checkpoints / SNAPSHOT)


def _is_whole(snapshot: Path) -> bool:
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


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
