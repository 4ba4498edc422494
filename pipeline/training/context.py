"""The context of a worker: the only one, in this process, or one of several Ray Train workers.

A context has the worker's rank and device, receives requests to stop, and reports finished epochs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from data_prep.common import signals
from data_prep.common.distribution import check_packages
from pipeline.config.schema import Settings
from pipeline.runs import paths
from pipeline.runs.run_folder import RunFolder
from pipeline.runtime import numa
from pipeline.runtime.coordination import StepAction

ASK_SECONDS = 0.25
"""Interval in seconds at which a worker looks for a request to stop."""


@dataclass(frozen=True)
class WorkerSpec:
    """Everything a worker needs to join a run."""

    settings: Settings
    """With absolute paths, as workers have other working directories."""
    folder: RunFolder
    profile: bool = False
    """Trace a few steps with torch.profiler."""


class WorkerContext(Protocol):
    """A worker's rank, device and connection to the process that started the run."""

    rank: int
    world_size: int
    leads_machine: bool
    """Whether this is the first of the workers on its machine."""
    device: torch.device
    preemption_poll_seconds: float | None
    """Seconds between two checks for a preemption notice; None where there is no such notice."""

    def requests(self) -> AbstractContextManager[Callable[[], StepAction]]:
        """Yields a function that returns at once whether the run should be saved or stopped, to be called on rank 0
        while it trains."""

    def saved(self) -> None:
        """Answers a request to save, on rank 0."""

    def wait_for_all(self) -> None:
        """Waits until every rank has called it, without a limit of time."""

    def preempted(self) -> bool:
        """Whether a worker's machine is about to be taken away; called on every rank, with the same result."""

    def report(self, metrics: dict[str, float]) -> None:
        """Reports an epoch that is finished and stored. Called on every rank."""


EpochReport = Callable[[dict[str, float]], None]
"""Called with the metrics of an epoch that is finished and stored."""


class LocalContext:
    """The only worker, in this process. The first Ctrl-C or SIGTERM saves and stops, a second one stops at once."""

    rank = 0
    world_size = 1
    leads_machine = True
    preemption_poll_seconds: float | None = None

    def __init__(self, spec: WorkerSpec, report: EpochReport | None = None) -> None:
        self.device = torch.device("cuda" if spec.settings.cluster.gpu else "cpu")
        self._report = report

    @contextmanager
    def requests(self) -> Iterator[Callable[[], StepAction]]:
        """Handles signals in the main thread; other threads receive none."""
        requested = threading.Event()

        def on_signal(number: int, frame: object) -> None:
            if requested.is_set():
                raise KeyboardInterrupt
            requested.set()

        with signals.handled(on_signal):
            yield lambda: StepAction.STOP if requested.is_set() else StepAction.NOTHING

    def saved(self) -> None:
        """Does nothing: nothing else asks."""

    def wait_for_all(self) -> None:
        """Does nothing: there is no other."""

    def preempted(self) -> bool:
        """Always false: a local process gets no preemption notice except signals."""
        return False

    def report(self, metrics: dict[str, float]) -> None:
        """Calls the function that the caller has given, if any: the history file is the report."""
        if self._report is not None:
            self._report(metrics)


class RayContext:
    """One of several Ray Train workers."""

    preemption_poll_seconds: float | None = 5.0

    def __init__(self, spec: WorkerSpec) -> None:
        import ray.train
        import ray.train.torch

        check_packages()
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.leads_machine: bool = context.get_local_rank() == 0
        self.watch_requests_in(spec.folder.path)
        # Ray returns a GPU wherever there is one, reserved or not.
        self.device: torch.device = ray.train.torch.get_device() if spec.settings.cluster.gpu else torch.device("cpu")
        if spec.settings.cluster.numa:
            numa.bind_process(
                spec.settings.cluster.threads,
                context.get_local_rank(),
                context.get_local_world_size(),
                self.device,
            )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # the default device of NCCL and of pickled messages

    def watch_requests_in(self, run: Path) -> None:
        """Sets the folder in which other processes make requests."""
        self._stop, self._save = run / paths.STOP, run / paths.SAVE

    @contextmanager
    def requests(self) -> Iterator[Callable[[], StepAction]]:
        """Other processes request by creating files; rank 0 removes them when the state is saved."""
        if self.rank != 0:
            yield lambda: StepAction.NOTHING
            return
        stop, save, ended = threading.Event(), threading.Event(), threading.Event()
        threading.Thread(target=self._watch, args=(stop, save, ended), name="requests", daemon=True).start()

        def requested() -> StepAction:
            if stop.is_set():
                return StepAction.STOP
            if save.is_set():
                save.clear()  # once for each request, even where it cannot be stored
                return StepAction.SAVE
            return StepAction.NOTHING

        try:
            yield requested
        finally:
            ended.set()
        self._stop.unlink(missing_ok=True)

    def _watch(self, stop: threading.Event, save: threading.Event, ended: threading.Event) -> None:
        """Looks for the files in a thread, as the file system may take its time."""
        known = False
        while not ended.wait(ASK_SECONDS):
            with suppress(OSError):  # shared storage may fail for a moment
                if self._stop.exists():
                    stop.set()
                there = self._save.exists()
                if there and not known:
                    save.set()
                known = there

    def saved(self) -> None:
        """Removes the request to save."""
        with suppress(OSError):
            self._save.unlink(missing_ok=True)

    def wait_for_all(self) -> None:
        """Waits at Ray Train's own barrier."""
        from ray.train.collective import barrier

        barrier()

    def preempted(self) -> bool:
        """Whether Ray knows that a worker's node is being drained."""
        import ray.train

        return ray.train.get_preemption_info() is not None

    def report(self, metrics: dict[str, float]) -> None:
        """Reports to Ray Train's controller: a barrier for all ranks."""
        import ray.train

        ray.train.report(metrics)
