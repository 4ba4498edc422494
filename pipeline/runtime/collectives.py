"""Collective operations over all ranks; each is the identity without a process group."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.distributed as dist

Value = TypeVar("Value")


def world_size() -> int:
    """Number of ranks, this one included; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def all_reduce(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, without a derivative; needs a process group."""
    result = values.clone()
    dist.all_reduce(result)
    return result


def sum_over_ranks(own: list[float], device: torch.device) -> list[float]:
    """The sum of each number over all ranks, in float64."""
    if world_size() == 1:
        return own
    total = torch.tensor(own, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.tolist()


def all_gather(own: Value) -> list[Value]:
    """The picklable value of every rank, by rank."""
    if world_size() == 1:
        return [own]
    gathered: list[Value] = [own] * world_size()
    dist.all_gather_object(gathered, own)
    return gathered


def broadcast_from_rank0(own: Value) -> Value:
    """The picklable value of rank 0."""
    if world_size() == 1:
        return own
    values = [own]
    dist.broadcast_object_list(values, src=0)
    return values[0]
