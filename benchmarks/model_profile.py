"""Where the time of a training step goes: wavelets, modulus, standardization, projection, and the rest.

    python -m benchmarks.model_profile --geometry imagenet --precision bf16 --threads 2

Each part of each block runs alone, forward and backward, on the numbers that it has in the network, in turn with the
whole step; medians over the rounds. Standardization is folded into the product of the projection: its time is that of
the projection with it, less that without. The modulus brings the features together too. What the step takes beyond its
parts is the rest: normalization, classifier and loss stand in it. The last line is JSON, in units of Y as in
`benchmarks.model_step`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from benchmarks import options
from benchmarks.geometries import GEOMETRIES
from benchmarks.model_step import training_step
from benchmarks.options import PRECISIONS
from benchmarks.yardstick import Yardstick, seconds
from pipeline.models.projection import Projection
from pipeline.models.scattering import Block, ScatteringNetwork
from pipeline.runtime import malloc

PARTS = ("wavelet", "modulus", "standardization", "projection")


def forward_and_backward(
    part: Callable[[Tensor], Tensor], x: Tensor, needs_gradient: bool, autocast: Callable[[], AbstractContextManager]
) -> tuple[Callable[[], None], Tensor]:
    """A call that runs `part` forward and backward on x, and the output of `part`."""
    x = x.detach().requires_grad_(needs_gradient)
    with autocast():
        y = part(x)
    gradient = torch.randn_like(y)

    def run() -> None:
        x.grad = None
        with autocast():
            result = part(x)
        if result.requires_grad:
            result.backward(gradient)

    return run, y.detach()


def parts_of_block(
    block: Block, x: Tensor, number: int, autocast: Callable[[], AbstractContextManager]
) -> tuple[list[Callable[[], None]], Tensor]:
    """Calls to be timed (wavelets, modulus, projection with standardization and without it), and the block's output."""
    plain = Projection(block.out_channels, block.projection.in_channels, block.projection.imaginary, standardize=False)
    wavelets, z = forward_and_backward(block.wavelets, x, number > 0, autocast)
    modulus, features = forward_and_backward(block.act, z, number > 0, autocast)
    rows = features.flatten(0, 4).flatten(1)
    standardized, _ = forward_and_backward(block.projection, rows, number > 0, autocast)
    projected, _ = forward_and_backward(plain, rows, number > 0, autocast)
    with torch.no_grad(), autocast():
        return [wavelets, modulus, standardized, projected], block(x)


def measure(
    network: ScatteringNetwork, images: Tensor, labels: Tensor, dtype: torch.dtype, rounds: int
) -> tuple[float, float, list[dict[str, float]]]:
    """Median times, in seconds, of the unit Y, of the whole step and of each part of each block."""

    def autocast() -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16)

    with autocast():
        x = network.to_signal(images)
    works: list[Callable[[], object]] = [Yardstick(), training_step(network, images, labels, dtype)]
    for number, block in enumerate(network.blocks):
        assert isinstance(block, Block)
        calls, x = parts_of_block(block, x, number, autocast)
        works += calls
    for work in works:
        work()
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    unit, step, *parts = [statistics.median(column) for column in zip(*times, strict=True)]
    blocks = []
    for number in range(len(network.blocks)):
        wavelet, modulus, standardized, projected = parts[4 * number : 4 * number + 4]
        blocks.append(dict(zip(PARTS, (wavelet, modulus, max(0, standardized - projected), projected), strict=True)))
    return unit, step, blocks


def main() -> int:
    parser = options.parser(__doc__, rounds=5)
    parser.add_argument("--batch", type=options.count, help="images in a step [cifar: 64, imagenet: 4]")
    chosen = parser.parse_args()

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    geometry = GEOMETRIES[chosen.geometry]
    network = geometry.network(chosen.skip)
    malloc.keep_freed_memory()  # as every worker of ours does
    batch = chosen.batch or geometry.batch
    images = torch.randn(batch, 3, geometry.size, geometry.size)
    labels = torch.randint(geometry.classes, (batch,))
    unit, step, blocks = measure(network, images, labels, PRECISIONS[chosen.precision], chosen.rounds)

    total = {part: sum(block[part] for block in blocks) for part in PARTS}
    total["rest"] = step - sum(total.values())
    print(f"{'block':>8}" + "".join(f"{part:>17}" for part in PARTS) + "  (ms)")
    for number, block in enumerate(blocks):
        print(f"{number:8}" + "".join(f"{1e3 * block[part]:17.1f}" for part in PARTS))
    print(f"{'all':>8}" + "".join(f"{1e3 * total[part]:17.1f}" for part in PARTS))
    print(
        f"step {1e3 * step:.0f} ms, Y = {1e3 * unit:.0f} ms: "
        + ", ".join(f"{part} {100 * value / step:.0f} %" for part, value in total.items())
    )
    print(json.dumps({part: round(value / unit, 3) for part, value in ({"step": step} | total).items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
