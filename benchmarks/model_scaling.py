"""How the time of a training step grows with pixels and with the batch: the slopes of log-log lines, 1 for linear.

    python -m benchmarks.model_scaling --precision bf16 --threads 2

The paper's ImageNet network takes images of 128 to 320 pixels in batches of 4, and batches of 2 to 16 at 224 pixels.
Steps of all sizes are timed in turn; the slope is a least-squares fit through their medians. What a step costs whatever
its size, such as reading the weights, makes the slope smaller than 1. The last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks import options
from benchmarks.geometries import GEOMETRIES
from benchmarks.model_step import training_step
from benchmarks.options import PRECISIONS
from benchmarks.yardstick import seconds
from pipeline.runtime import malloc

SIZES, BATCH = (128, 160, 192, 224, 256, 320), 4
BATCHES, SIZE = (2, 4, 8, 16), 224


def step(size: int, batch: int, skip: bool, dtype: torch.dtype) -> Callable[[], None]:
    """A training step on `batch` images of `size` × `size` pixels."""
    geometry = replace(GEOMETRIES["imagenet"], size=size)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(geometry.classes, (batch,))
    return training_step(geometry.network(skip), images, labels, dtype)


def slope(amounts: list[int], times: list[float]) -> float:
    """Slope of the least-squares line through log(times) over log(amounts)."""
    return float(np.polyfit(np.log(amounts), np.log(times), 1)[0])


def main() -> int:
    chosen = options.parser(__doc__, rounds=5, geometry=False).parse_args()

    torch.set_num_threads(chosen.threads)
    malloc.keep_freed_memory()  # as every worker of ours does
    cases = [*((size, BATCH) for size in SIZES), *((SIZE, batch) for batch in BATCHES if batch != BATCH)]
    steps = {case: step(*case, chosen.skip, PRECISIONS[chosen.precision]) for case in cases}
    times: dict[tuple[int, int], list[float]] = {case: [] for case in cases}
    for number in range(chosen.rounds + 1):
        for case in cases:
            took = seconds(steps[case])
            if number > 0:  # the first finds its memory
                times[case].append(took)
    medians = {case: statistics.median(values) for case, values in times.items()}
    for (size, batch), took in medians.items():
        print(f"{size} px, batch {batch:2}: {took:7.3f} s, {1e9 * took / (batch * size**2):6.0f} ns a pixel")
    pixels = slope([size**2 for size in SIZES], [medians[size, BATCH] for size in SIZES])
    batches = slope(list(BATCHES), [medians[SIZE, batch] for batch in BATCHES])
    print(json.dumps({"slope_in_pixels": round(pixels, 3), "slope_in_batch": round(batches, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
