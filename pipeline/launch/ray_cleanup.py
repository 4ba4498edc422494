"""Leaves a Ray cluster as it was before a run or a search: nothing reserved, nothing running.

A trial is stopped by killing its process, and with it Ray Train's controller. Its reservations outlive it
until a watcher in Ray notices. A reservation that was still waiting for CPUs is never noticed: it would take them when
they become free, even after this program has ended. So all reservations of this program's job are removed here.
"""

from __future__ import annotations

import contextlib
import time

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors, list_jobs
from ray.util.state.exception import RayStateApiException

from data_prep.common.errors import UserError
from data_prep.common.ray_internals import COORDINATOR, is_of_job


def check_state_service() -> None:
    """Checks the state service of Ray's dashboard, through which Ray frees what stopped trials reserved.

    Raises:
        UserError: the service does not answer.
    """
    try:
        list_actors(address=_address(), limit=1)
    except (RayStateApiException, RayError, OSError):
        raise UserError(
            "cluster.address: its dashboard does not answer, but Ray frees what stopped trials reserved through it: "
            "start the cluster with --include-dashboard=true"
        ) from None


def free_reservations() -> list[str]:
    """Removes all placement groups of this process's Ray job; returns their hexadecimal ids."""
    job: str = ray.get_runtime_context().get_job_id()
    table = placement_group_table()
    groups = [group for group, content in table.items() if is_of_job(group, job) and content["state"] != "REMOVED"]
    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))
    return groups


def release(timeout_s: float = 60.0) -> list[str]:
    """Removes all reservations of this job, and waits until its processes have ended.

    Returns:
        Names of reservations and processes that remain after `timeout_s`; empty if there are none.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        groups = free_reservations()
        try:
            processes = _processes()
            if processes == [COORDINATOR] and _is_only_job():
                _end_coordinator()
                processes = []
        except RayStateApiException:
            processes = ["of an unknown kind (the dashboard does not answer any more)"]
        held = [f"placement group {group}" for group in groups] + [f"process {name}" for name in processes]
        if not held or time.monotonic() > deadline:
            return held
        time.sleep(0.5)


def leave() -> None:
    """Removes all reservations of this job at the end of a run, and waits a moment until its processes have ended, if
    the cluster and its state service are there to be asked."""
    with contextlib.suppress(UserError, RayError, RayStateApiException):
        check_state_service()
        release(timeout_s=5.0)


def _processes() -> list[str]:
    """Names, or else classes, of this job's living actors."""
    mine = [("job_id", "=", ray.get_runtime_context().get_job_id()), ("state", "!=", "DEAD")]
    actors = list_actors(address=_address(), filters=mine)
    return [actor.name or actor.class_name for actor in actors]


def _is_only_job() -> bool:
    running = list_jobs(address=_address(), filters=[("status", "=", "RUNNING")])
    return len(running) == 1


def _end_coordinator() -> None:
    """Ends the coordinator, and withdraws the requests of stopped trials to the autoscaler, which would keep idle nodes
    running."""
    with contextlib.suppress(ValueError):  # gone already
        ray.kill(ray.get_actor(COORDINATOR, namespace=COORDINATOR))
    request_resources(bundles=[])


def _address() -> str:
    """Address of this cluster; without it, the state service searches this machine and may find several."""
    address: str = ray.get_runtime_context().gcs_address
    return address
