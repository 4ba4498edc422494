"""A function in several processes of this machine that communicate by gloo, as workers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_prep.format.manifest import load_manifest
from pipeline.config.schema import Settings
from pipeline.runs import run_folder
from pipeline.training import finetune, trainer
from pipeline.training.context import LocalContext, WorkerSpec

RANKS = 2


def in_ranks(work: Callable[..., Any], folder: Path, *arguments: Any, ranks: int = RANKS) -> list[Any]:
    """Calls work(rank, *arguments) in each of `ranks` new processes, with one thread; what they return, by rank.

    Args:
        work: of a module, so that the processes find it.
        folder: for files by which they meet; one for each call.
    """
    # The server has imported torch once, for all that it forks.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["pipeline.training.trainer", "torch._dynamo"]
    )
    torch.multiprocessing.start_processes(
        _in_rank, (ranks, folder, work, arguments), nprocs=ranks, start_method="forkserver"
    )
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(ranks)]


def _in_rank(rank: int, ranks: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.save(work(rank, *arguments), folder / f"result-{rank}.pt")
    dist.destroy_process_group()


class Rank(LocalContext):
    """One of several workers without a cluster."""

    def __init__(self, job: WorkerSpec, rank: int) -> None:
        super().__init__(job)
        self.rank, self.world_size = rank, dist.get_world_size()


def train_in_ranks(settings: Settings, folder: Path) -> Path:
    """Trains a run by as many processes as it has workers, without a cluster and a store; its folder.

    Args:
        settings: with absolute paths.
        folder: for files by which they meet.
    """
    data = load_manifest(Path(settings.data.path))
    with run_folder.claim(settings, data, finetune.digest(settings)) as run:
        run.begin()
        assert all(in_ranks(_train, folder, WorkerSpec(settings, run), ranks=settings.cluster.workers))
    return run.path


def _train(rank: int, job: WorkerSpec) -> bool:
    return trainer.train_worker(job, Rank(job, rank))
