"""Claims about the private parts of torch that are used."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.runtime import torch_internals
from tests.helpers.ranks import in_ranks

ROOT = Path(__file__).parents[3]


def steps(rank: int) -> list[str]:
    network = DistributedDataParallel(nn.Linear(4, 4))
    for _ in range(3):
        network(torch.zeros(2, 4)).sum().backward()
    times = [torch_internals.communication_times(each) for each in (network, torch.compile(network))]
    return [name for found in times if found for name in found if name.startswith("avg_")]


def test_distributed_data_parallel_measures_its_communication(tmp_path: Path) -> None:
    names = {"avg_backward_comm_time", "avg_backward_compute_comm_overlap_time", "avg_backward_compute_time"}
    for found in in_ranks(steps, tmp_path):
        assert names | {"avg_forward_compute_time"} <= set(found) and len(found) == 2 * len(set(found))
    assert torch_internals.communication_times(nn.Linear(4, 4)) is None


def test_views_have_one_storage_and_copies_have_another() -> None:
    values = torch.zeros(4)
    same, other = (each.untyped_storage() for each in (values[1:], values.clone()))
    identity = torch_internals.storage_identity(values.untyped_storage())
    assert torch_internals.storage_identity(same) == identity != torch_internals.storage_identity(other)


def test_no_other_module_touches_private_parts_of_torch() -> None:
    private = re.compile(r"\btorch\._|_orig_mod|_cdata|_get_ddp")
    files = [path for package in ("data_prep", "pipeline", "tuning") for path in (ROOT / package).rglob("*.py")]
    found = [path.name for path in files if private.search(path.read_text(encoding="utf-8"))]
    assert found == ["torch_internals.py"]
