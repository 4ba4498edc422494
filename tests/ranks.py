"""A function in several processes of this machine that communicate by gloo, as workers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

RANKS = 2


def in_ranks(work: Callable[..., Any], folder: Path, *arguments: Any, ranks: int = RANKS) -> list[Any]:
    """Calls work(rank, *arguments) in each of `ranks` new processes, with one thread; what they return, by rank.

    Args:
        work: of a module, so that the processes find it.
        folder: for files by which they meet; one for each call.
    """
    torch.multiprocessing.spawn(_in_rank, (ranks, folder, work, arguments), nprocs=ranks)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(ranks)]


def _in_rank(rank: int, ranks: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    torch.save(work(rank, *arguments), folder / f"result-{rank}.pt")
    dist.destroy_process_group()
