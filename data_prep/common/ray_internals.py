"""Everything of Ray that is used and is not part of its public interface: the only module that may touch such parts.

Read in Ray 2.60. Each function says why it is needed; `tests/data_prep/common/test_ray_internals.py` fails where a new
version of Ray differs from what is assumed here, and pyproject.toml allows no version that has not been tested.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RAY_VERSION = "2.60"
"""Version that this module was read in."""
QUIET = {
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # resource usage of each process, for the dashboard
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",  # off
    "RAY_num_workers_soft_limit": "0",  # idle processes that wait for tasks
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a local machine is not taken away
}
"""Environment variables, mostly undocumented, that turn off background work of a cluster of one machine."""
UNUSED_CALLBACKS = ("DatasetsCallback",)
"""Callbacks of Ray Train that hand out Ray's own data sets, which are not used here."""
CLEANUP_CALLBACKS = ("PlacementGroupCleanerCallback",)
"""Callbacks that free the placement groups of a controller that died, which this program does in a job of its own."""
COORDINATOR = "AutoscalingCoordinator"
"""Name and namespace of the actor through which Ray Train requests resources of the autoscaler; it outlives jobs."""
IDLE_TITLE = "ray::IDLE"
"""Title of a process that waits for tasks. The cluster ends it when the command has left."""
SPARED_TITLES = (IDLE_TITLE, "ray::_AutoscalingCoordinatorActor")
"""Titles of processes that outlive a command: idle ones, and that of the coordinator, which serves other jobs, too."""
HEAD_NODE = {"node:__internal_head__": 0.001}
"""Resources of a small process that must be on the head node; the name of that node's resource is Ray's own."""
ABORT_SECONDS = 3
"""Time that the controller gets to end its workers, which have saved before; on GPUs they may wait for each other."""


def task_title(function: Callable[..., object]) -> str:
    """Title of the process that runs a task with this body."""
    return f"ray::{function.__name__}"


def is_of_job(placement_group: str, job: str) -> bool:
    """Whether a placement group was made by a job, by their hexadecimal ids: that of a group ends with its job's."""
    return placement_group.endswith(job)


def port_of_cluster(port: int) -> dict[str, str]:
    """Environment variable that decides at which port a cluster that this process starts is reached.

    `ray.init` has no argument for it. The port must be known before: processes of a job get the address of their
    cluster, without which Ray's own clean-up searches this machine and may find several.
    """
    return {"RAY_GCS_SERVER_PORT": str(port)}


@contextmanager
def without_log_monitor() -> Iterator[None]:
    """Starts a cluster without the process that looks ten times a second for output of workers.

    Its output would be printed by the driver, which turns that off (`log_to_driver`); no setting stops the process.
    Together with the dashboard it took about half of the 14 % of a core that a run's other processes used.
    """
    from ray._private.node import Node

    start = Node.start_log_monitor
    Node.start_log_monitor = lambda self: None
    try:
        yield
    finally:
        Node.start_log_monitor = start


def reread_authentication() -> None:
    """Makes Ray read RAY_AUTH_MODE and RAY_AUTH_TOKEN from the environment now.

    Ray reads them when it is imported, which may have been before they were set. Needed for security: without it, a
    cluster that this program starts would ask for no token.
    """
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def error_of_trial(trial: Any) -> Exception | None:
    """The error that ended a trial of Ray Tune; None if its process died.

    `Trial.get_pickled_error` reads the file that Tune wrote where it will be stored, to which it is copied later.
    """
    if trial.pickled_error_file is None:
        return None
    error: Exception = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    return error


def before_resize(save: Callable[[], None]) -> Any:
    """A callback for Ray Train's RunConfig: calls `save` in the controller before workers that are well are restarted
    because their number changes. Ray restarts them without a notice to them."""
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class BeforeResize(ControllerCallback, WorkerGroupCallback):
        well = False

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.well = True

        def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
            self.well = not worker_group_status.errors

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            if self.well:
                save()
            self.well = False

    return BeforeResize()


def build_torch_trainer(
    function: Callable[[dict[str, Any]], None], *, left_out: Collection[str], **options: Any
) -> tuple[Any, Callable[[], None]]:
    """A TorchTrainer without some callbacks and without Ray's handler of Ctrl-C, and a function that aborts its run.

    Ray's handler raises SystemExit, which hides that the user interrupted. Each callback in `left_out` starts an actor,
    which wakes up a hundred times a second and takes 0.85 to 1.1 % of a core; together they take about two.

    Args:
        left_out: class names of the callbacks.
        options: of TorchTrainer.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        controller: Any = None

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if type(callback).__name__ not in left_out]

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    trainer = Trainer(function, **options)

    def abort() -> None:
        if trainer.controller is not None:
            try:
                ray.get(trainer.controller.abort.remote(), timeout=ABORT_SECONDS)
            except GetTimeoutError:
                ray.kill(trainer.controller)  # and with it its workers
            except RayError:
                pass  # the controller reports that it died

    return trainer, abort
