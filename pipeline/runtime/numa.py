"""Binds a worker to the CPUs of one NUMA node, on machines with several: the node of its GPU, or, without a GPU, one of
the nodes in even distribution.

Memory of another node is slower, and so is a copy from it to the GPU. The topology is read from Linux's /sys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

NODES = Path("/sys/devices/system/node")
DEVICES = Path("/sys/bus/pci/devices")
THREADS = Path("/proc/self/task")


def bind_process(cpus: int, local_rank: int, local_workers: int, device: torch.device) -> set[int] | None:
    """Moves all threads of this process to the CPUs of one NUMA node.

    Args:
        cpus: that the worker reserves; a node with fewer usable CPUs is not chosen.
        local_rank, local_workers: index of the worker on this machine, and number of workers there.
        device: of the worker.

    Returns:
        The CPUs of the node; None if the process is not bound, as the machine has one node or an unknown topology.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    allowed = os.sched_getaffinity(0)
    nodes = {node: usable for node, there in cpus_of_nodes(NODES).items() if (usable := there & allowed)}
    if len(nodes) < 2:
        return None
    node = node_of_gpu(device) if device.type == "cuda" else dealt(sorted(nodes), local_rank, local_workers)
    if node not in nodes or len(nodes[node]) < cpus:
        return None
    for thread in THREADS.iterdir():  # affinity belongs to a thread, and is inherited by the threads that it starts
        with suppress(OSError):  # the thread has ended
            os.sched_setaffinity(int(thread.name), nodes[node])
    return nodes[node]


def cpus_of_nodes(folder: Path) -> dict[int, set[int]]:
    """The CPUs of each NUMA node, by its number; empty if the topology is unknown."""
    return {
        int(path.parent.name.removeprefix("node")): cpu_list(path.read_text(encoding="ascii"))
        for path in folder.glob("node[0-9]*/cpulist")
    }


def cpu_list(text: str) -> set[int]:
    """The numbers in a list in Linux's format, such as 0-3,8."""
    ranges = [part.partition("-")[::2] for part in text.strip().split(",") if part]
    return {number for first, last in ranges for number in range(int(first), int(last or first) + 1)}


def node_of_gpu(device: torch.device, folder: Path = DEVICES) -> int | None:
    """The NUMA node that a GPU is attached to; None if it is unknown."""
    found: Any = torch.cuda.get_device_properties(device)
    return node_of_device(found.pci_domain_id, found.pci_bus_id, found.pci_device_id, folder)


def node_of_device(domain: int, bus: int, device: int, folder: Path) -> int | None:
    """The NUMA node of a device on the PCI bus; None if it is unknown."""
    try:
        node = int((folder / f"{domain:04x}:{bus:02x}:{device:02x}.0" / "numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None  # -1: unknown


def dealt(nodes: Sequence[int], local_rank: int, local_workers: int) -> int:
    """The node of a worker without a GPU; consecutive workers share one: of four workers on two nodes, 0, 0, 1, 1."""
    return nodes[local_rank * len(nodes) // max(local_workers, 1)]
