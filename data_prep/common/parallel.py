"""Parallel calls of one function: in threads of this process, or as Ray tasks on all nodes of a cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Protocol, TypeVar

from data_prep.common.distribution import check_packages
from data_prep.common.errors import UserError, first_line

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Advance = Callable[[int], None]
Function = Callable[[Argument, Advance], Result]

RETRIES = 3
"""Times that a Ray task is restarted after its process or node died."""
POLL_SECONDS = 0.5
"""Interval, in seconds, at which the progress of Ray tasks is polled."""


def cores() -> int:
    """Number of CPUs that this process may use; all CPUs where the system keeps no such set, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Executor(Protocol):
    """Calls functions in parallel. A call may run twice, if its process died, so functions must be idempotent."""

    count: int
    """Number of calls that run at the same time."""

    def map(self, function: Function[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """Calls `function(argument, advance)` for each argument; yields the results in the order of completion.

        `advance(n)` reports n more units (images) as done. The first exception stops all calls and is raised here.
        """


class ThreadExecutor:
    """Threads of this process, for functions that release the GIL most of the time.

    Args:
        count: number of threads.
        on_progress: called with numbers of units that are done, from any thread.
    """

    def __init__(self, count: int, on_progress: Advance = lambda units: None) -> None:
        self.count = count
        self._on_progress = on_progress

    def map(self, function: Function[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """Results in the order of completion; closing the iterator stops calls when they next report progress."""
        stopped = threading.Event()

        def advance(units: int) -> None:
            if stopped.is_set():
                raise _Stopped
            self._on_progress(units)

        remaining = iter(arguments)
        with ThreadPoolExecutor(self.count, "prepare") as pool:
            try:
                running = {pool.submit(function, each, advance) for each in islice(remaining, self.count)}
                while running:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    results = [future.result() for future in done]
                    running |= {pool.submit(function, each, advance) for each in islice(remaining, len(done))}
                    yield from results
            finally:
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)


class RayExecutor:
    """Tasks on the nodes of the Ray cluster that this process is connected to, one CPU each.

    A task whose process dies, or whose node leaves the cluster, is restarted up to RETRIES times. The process that
    calls `map` must survive, and so must the node of the cluster's head.

    Args:
        count: number of tasks that run at the same time; by default the CPUs of the cluster.
        on_progress: called with numbers of units that are done.
    """

    def __init__(self, count: int | None = None, on_progress: Advance = lambda units: None) -> None:
        import ray

        self.count = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._on_progress = on_progress

    def map(self, function: Function[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """Results in the order of completion.

        Raises:
            UserError: a call raised it, or a task died more than RETRIES times.
        """
        import ray

        restarted = {"max_restarts": -1, "max_task_retries": -1}  # the counter may be on a node that dies
        counter = ray.remote(num_cpus=0, **restarted)(_Counter).remote()
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        remaining = iter(arguments)
        shared = ray.put(function)
        running = [task.remote(shared, each, counter) for each in islice(remaining, self.count)]
        try:
            while running:
                done, running = ray.wait(running, timeout=POLL_SECONDS)
                self._on_progress(ray.get(counter.take.remote()))
                results = [_result(ray, each) for each in done]
                running += [task.remote(shared, each, counter) for each in islice(remaining, len(done))]
                yield from results
            self._on_progress(ray.get(counter.take.remote()))
        finally:
            for each in running:
                ray.cancel(each, force=True)
            ray.kill(counter)


class _Stopped(Exception):
    """Stops a call whose result is not needed any more."""


class _Counter:
    """Ray actor that counts the units that tasks have finished since the last poll."""

    def __init__(self) -> None:
        self._units = 0

    def add(self, units: int) -> None:
        self._units += units

    def take(self) -> int:
        units, self._units = self._units, 0
        return units


def _call(function: Function[Argument, Result], argument: Argument, counter: Any) -> Result:
    """Body of a Ray task; reports progress every POLL_SECONDS at most."""
    check_packages()
    units, reported = 0, time.monotonic()

    def advance(more: int) -> None:
        nonlocal units, reported
        units += more
        if time.monotonic() - reported > POLL_SECONDS:
            counter.add.remote(units)
            units, reported = 0, time.monotonic()

    result = function(argument, advance)
    counter.add.remote(units)
    return result


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a Ray task died {RETRIES + 1} times ({first_line(error)}): check the cluster's memory and logs, then "
            "rerun the same command to resume"
        ) from None
