"""A worker's place: alone in this process, or one of several Ray Train workers.

A session knows this worker's rank and device, who may want the run to stop, and to whom finished epochs are reported.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from data_prep.common.distribution import check_packages
from pipeline.config.schema import Settings
from pipeline.runs import paths
from pipeline.runs.run_folder import RunFolder
from pipeline.runtime import numa


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told."""

    settings: Settings
    """With absolute paths: workers run in folders of their own."""
    folder: RunFolder
    profile: bool = False
    """Write down what a few steps spend their time on."""


class WorkerContext(Protocol):
    """A worker's place among the others."""

    rank: int
    world_size: int
    device: torch.device
    preemption_poll_seconds: float | None
    """How often to ask whether the worker is about to lose its machine; None where nobody knows."""

    def stoppable(self) -> AbstractContextManager[Callable[[], bool]]:
        """While the body trains: a function that says whether the run is to stop. Asked on the first rank."""

    def preempted(self) -> bool:
        """Whether the machine of a worker is about to be taken away; every rank asks, and all get the same answer."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tells of an epoch that is finished and stored; every rank does."""


class LocalContext:
    """The only worker, in this process. The first Ctrl-C or SIGTERM lets it save, a second one ends it at once."""

    rank = 0
    world_size = 1
    preemption_poll_seconds: float | None = None

    def __init__(self, job: WorkerSpec) -> None:
        self.device = torch.device("cuda" if job.settings.cluster.gpu else "cpu")

    @contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """Signals are only noted, in the main thread; in others nobody gets any."""
        requested = threading.Event()
        if threading.current_thread() is not threading.main_thread():
            yield requested.is_set
            return

        def on_signal(number: int, frame: object) -> None:
            if requested.is_set():
                raise KeyboardInterrupt
            requested.set()

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield requested.is_set
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def preempted(self) -> bool:
        """Nobody tells a process without a cluster, but for SIGTERM."""
        return False

    def report(self, metrics: dict[str, float]) -> None:
        """Whoever is interested reads the history."""


class RayContext:
    """One of several Ray Train workers."""

    preemption_poll_seconds: float | None = 5.0

    def __init__(self, job: WorkerSpec) -> None:
        import ray.train
        import ray.train.torch

        check_packages()
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self._stop = job.folder.path / paths.STOP
        # Ray names a GPU wherever it sees one, reserved or not.
        self.device: torch.device = ray.train.torch.get_device() if job.settings.cluster.gpu else torch.device("cpu")
        if job.settings.cluster.numa:
            numa.bind_process(
                job.settings.cluster.threads,
                context.get_local_rank(),
                context.get_local_world_size(),
                self.device,
            )
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where NCCL and pickled messages go by default

    @contextmanager
    def stoppable(self) -> Iterator[Callable[[], bool]]:
        """The process that the user started asks by a file, and learns from its end that the state is saved."""
        yield self._stop.exists
        if self.rank == 0:
            self._stop.unlink(missing_ok=True)

    def preempted(self) -> bool:
        """Whether Ray knows that a worker's node is being drained."""
        import ray.train

        return ray.train.get_preemption_info() is not None

    def report(self, metrics: dict[str, float]) -> None:
        """Reports to Ray Train's controller: a barrier for all ranks."""
        import ray.train

        ray.train.report(metrics)
