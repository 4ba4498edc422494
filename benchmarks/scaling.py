"""What communication costs: workers that average gradients, and as many that do not, in turn on the same cores.

    python -m benchmarks.scaling --geometry cifar

Each worker is a process pinned to a core of its own, with one thread and its batches in memory. Workers that
communicate are wrapped as training wraps them (DistributedDataParallel over gloo, gradients sent while others are
computed); the others take the same steps alone. The last line is JSON:

    efficiency                  images/s of those that communicate over those that do not
    gradient_megabytes          that each worker sends and receives in a step
    images_per_second           of all workers together, both ways
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import options
from benchmarks.geometries import GEOMETRIES
from benchmarks.options import PRECISIONS, count
from pipeline.runtime import malloc

WARM_UP = 2
"""Steps before the clock starts, in each turn."""


def work(rank: int, workers: int, chosen: dict[str, Any], folder: str) -> None:
    """One worker: trains with and without communication in turn; rank 0 writes the time of each turn."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    malloc.keep_freed_memory()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    torch.manual_seed(0)
    geometry = GEOMETRIES[chosen["geometry"]]
    network = geometry.network(chosen["skip"])
    batch = chosen["batch"] or geometry.batch
    images = torch.randn(batch, 3, geometry.size, geometry.size)
    labels = torch.randint(0, geometry.classes, (batch,))
    wrapped = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    ways: dict[str, nn.Module] = {"together": wrapped, "alone": network}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(chosen["rounds"] + 1):
        for name, model in ways.items():
            network.zero_grad(set_to_none=True)
            for step in range(WARM_UP + chosen["steps"]):
                if step == WARM_UP:
                    dist.barrier()
                    started = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[chosen["precision"]] == torch.bfloat16):
                    logits = model(images)
                model.zero_grad(set_to_none=True)
                nn.functional.cross_entropy(logits.float(), labels).backward()
            own = torch.tensor(time.perf_counter() - started, dtype=torch.float64)
            dist.all_reduce(own, op=dist.ReduceOp.SUM)
            if turn:  # the first warms up
                seconds[name].append(float(own) / workers)
    if rank == 0:
        learned = sum(each.numel() * each.element_size() for each in network.parameters())
        speed = {name: workers * batch * chosen["steps"] / statistics.median(each) for name, each in seconds.items()}
        result = {
            "efficiency": round(statistics.median(map(_ratio, seconds["alone"], seconds["together"])), 3),
            "gradient_megabytes": round(learned / 1e6, 2),
            "images_per_second": {name: round(each, 1) for name, each in speed.items()},
            "workers": workers,
            "batch_per_worker": batch,
        }
        Path(folder, "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def _ratio(alone: float, together: float) -> float:
    return alone / together


def main() -> int:
    parser = options.parser(__doc__, rounds=5)
    parser.add_argument("--workers", type=count, default=2, help="[%(default)s]")
    parser.add_argument("--steps", type=count, default=6, help="of each turn [%(default)s]")
    parser.add_argument("--batch", type=count, help="images of a worker in a step [the geometry's]")
    chosen = parser.parse_args()
    if chosen.workers > len(os.sched_getaffinity(0)):
        parser.error(f"--workers: there are {len(os.sched_getaffinity(0))} cores, and each worker needs one")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (chosen.workers, vars(chosen), folder), nprocs=chosen.workers)
        result = json.loads(Path(folder, "result.json").read_text())
    for name, speed in result["images_per_second"].items():
        print(f"{name:10s} {speed:8.1f} images/s")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
