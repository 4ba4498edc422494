"""The processes of a command on a Ray cluster, as the operating system knows them.

Ray takes a process for dead when its connection ends. The process itself may stay for ever, for example where an exit
handler waits for a lock, with all its memory. So every process that works for a command carries a mark in its
environment, and those that are left when the command leaves the cluster are ended by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil

from data_prep.common.ray_internals import IDLE_TITLE, SPARED_TITLES, task_title

MARK = "PHASECOLLAPSE_COMMAND"
"""Environment variable of a command's processes; its value belongs to this command alone."""
PATIENCE_S = 4.0
"""Seconds that processes get to end by themselves."""
_NODES_S = 20.0


def end_here(mark: str, spared: Callable[[psutil.Process], bool] = lambda process: False) -> int:
    """Waits for the processes of this machine with this mark, and kills those that are left after PATIENCE_S.

    Args:
        mark: value of MARK in their environments.
        spared: processes that may stay.

    Returns:
        How many were killed.
    """
    try:
        psutil.wait_procs(_with(mark, spared), timeout=PATIENCE_S)
    finally:  # a user who interrupts does not wait
        left = _with(mark, spared)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=PATIENCE_S)
    return len(left)


def end_on_nodes(mark: str) -> None:
    """Waits for the processes with this mark on every node of the cluster that this process is connected to, and kills
    those that are left. Processes that wait for tasks stay, and so do those that serve other jobs; nodes that do not
    answer in time are left alone."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_end_others)
    with suppress(Exception):  # a cluster that has gone away holds nothing, and is reported elsewhere
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        running = [
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(mark)
            for node in nodes
        ]
        ray.wait(running, num_returns=len(running), timeout=_NODES_S)


def _end_others(mark: str) -> int:
    """Body of a Ray task, which carries the mark itself."""
    return end_here(mark, lambda process: _title(process).startswith((*SPARED_TITLES, task_title(_end_others))))


def _with(mark: str, spared: Callable[[psutil.Process], bool]) -> Sequence[psutil.Process]:
    return [process for process in psutil.process_iter() if _mark_of(process) == mark and not spared(process)]


def _mark_of(process: psutil.Process) -> str | None:
    try:
        environment: dict[str, Any] = process.environ()
    except (psutil.Error, OSError):  # gone, or somebody else's
        return None
    return environment.get(MARK)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return IDLE_TITLE
