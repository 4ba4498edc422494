"""Many calls of one function, at once: on this machine's threads, or as Ray tasks on all nodes of a cluster."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, Protocol, TypeVar

from data_prep.common.distribution import check_packages
from data_prep.common.errors import UserError

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Advance = Callable[[int], None]
Function = Callable[[Argument, Advance], Result]

RETRIES = 3
"""Times that a Ray task is started again whose process or node died."""
POLL_SECONDS = 0.5
"""How often a Ray task's progress is asked for."""


def cores() -> int:
    """How many CPUs this process may use; where the system does not tell, as macOS, how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Executor(Protocol):
    """Whoever does the calls. A call may be made twice (its process may have died), so it must be repeatable."""

    count: int
    """Calls that run at the same time."""

    def map(self, function: Function[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """Calls `function(argument, advance)` for each argument and yields the results as they come, in any order.

        `advance(n)` reports n more units (images) as done. The first exception ends all calls and is raised here.
        """


class ThreadExecutor:
    """Threads of this process: for functions that spend their time outside of Python.

    Args:
        count: of threads.
        on_progress: is told of units that are done, by any thread.
    """

    def __init__(self, count: int, on_progress: Advance = lambda units: None) -> None:
        self.count = count
        self._on_progress = on_progress

    def map(self, function: Function[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """Results of the calls, as they come; leaving early ends the calls that are under way at their next report."""
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

    A task whose process or node dies is started again, RETRIES times.

    Args:
        count: of tasks at the same time; by default the CPUs of the cluster.
        on_progress: is told of units that are done.
    """

    def __init__(self, count: int | None = None, on_progress: Advance = lambda units: None) -> None:
        import ray

        self.count = count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._on_progress = on_progress

    def map(self, function: Function[Argument, Result], arguments: Iterable[Argument]) -> Iterator[Result]:
        """Results of the calls, as they come.

        Raises:
            UserError: one that a call raised, or a call's process died again and again.
        """
        import ray

        counter = ray.remote(num_cpus=0)(_Counter).remote()
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
    """Ends a call whose result nobody waits for any more."""


class _Counter:
    """Units that tasks have done since they were last asked for; lives in a process of its own."""

    def __init__(self) -> None:
        self._units = 0

    def add(self, units: int) -> None:
        self._units += units

    def take(self) -> int:
        units, self._units = self._units, 0
        return units


def _call(function: Function[Argument, Result], argument: Argument, counter: Any) -> Result:
    """What a Ray task does; it reports progress twice a second at most."""
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"a Ray task died {RETRIES + 1} times ({reason}): look at the cluster's memory and logs, then start again"
        ) from None
