"""Claims about the CPUs that a worker is kept on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.numa import cpu_list, cpus_of_nodes, dealt, node_of_device


def nodes(folder: Path, *lists: str) -> Path:
    """A folder as Linux has it for a machine of NUMA nodes with these CPUs."""
    for number, text in enumerate(lists):
        (folder / f"node{number}").mkdir(parents=True)
        (folder / f"node{number}" / "cpulist").write_text(f"{text}\n")
    (folder / "possible").write_text("0\n")
    return folder


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-3,8", {0, 1, 2, 3, 8}), ("5\n", {5}), ("0-1,4-5", {0, 1, 4, 5}), ("\n", set())]
)
def test_lists_of_cpus_are_read_as_linux_writes_them(text: str, numbers: set[int]) -> None:
    assert cpu_list(text) == numbers


def test_each_node_has_its_cpus(tmp_path: Path) -> None:
    assert cpus_of_nodes(nodes(tmp_path / "node", "0-1,4-5", "2-3,6-7", "")) == {
        0: {0, 1, 4, 5},
        1: {2, 3, 6, 7},
        2: set(),
    }
    assert cpus_of_nodes(tmp_path / "nowhere") == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_this_machine_reports_its_own() -> None:
    there = cpus_of_nodes(Path("/sys/devices/system/node"))
    assert set().union(*there.values()) >= os.sched_getaffinity(0)


def test_a_gpu_is_found_by_its_place_on_the_bus(tmp_path: Path) -> None:
    for place, node in (("0000:3b:00.0", "1"), ("0001:00:1e.0", "-1")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "numa_node").write_text(f"{node}\n")
    assert node_of_device(0, 0x3B, 0, tmp_path) == 1
    assert node_of_device(1, 0, 0x1E, tmp_path) is None, "Linux does not know"
    assert node_of_device(0, 0, 0, tmp_path) is None


@pytest.mark.parametrize(("workers", "expected"), [(4, [0, 0, 1, 1]), (3, [0, 0, 1]), (2, [0, 1]), (1, [0])])
def test_neighbours_share_a_node(workers: int, expected: list[int]) -> None:
    assert [dealt([0, 1], rank, workers) for rank in range(workers)] == expected


SETTLE = """
import os, sys
from pathlib import Path
import torch
from pipeline.runtime import numa
torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # its threads are there
for folder, cpus in zip(sys.argv[1::2], sys.argv[2::2]):
    numa.NODES = Path(folder)
    print(numa.bind_process(int(cpus), 1, 2, torch.device("cpu")))
print(*sorted({str(os.sched_getaffinity(int(thread))) for thread in os.listdir("/proc/self/task")}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_worker_and_its_threads_stay_on_the_node_that_is_dealt_to_it(tmp_path: Path) -> None:
    first, second = sorted(os.sched_getaffinity(0))[:2]
    one = nodes(tmp_path / "one", f"{first},{second}")
    both = nodes(tmp_path / "both", str(first), str(second))
    tries = [(tmp_path / "nowhere", 1), (one, 1), (both, 2), (both, 1)]
    command = [sys.executable, "-c", SETTLE, *(str(each) for one_try in tries for each in one_try)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["None", "None", "None", str({second}), str({second})]
