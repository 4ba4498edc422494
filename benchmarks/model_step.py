"""How long a training step (forward, loss, backward) takes, in units of this machine's matrix products.

    python -m benchmarks.model_step --geometry cifar --precision fp32 --threads 2
    python -m benchmarks.model_step --geometry imagenet --skip --precision bf16 --threads 2
    python -m benchmarks.model_step --geometry cifar --precision fp32 --threads 2 --oracle

The unit is Y, the time of ten 2048×2048×2048 float32 products with the same number of threads. Y and the step are timed
in turn, so that whatever else the machine does slows both; medians over the rounds are compared. The last line is JSON:

    yardsticks              Y a step takes
    images_per_second       in the median step
    peak_gb                 largest memory of the whole process, 10⁹ bytes
    matmul_limit_fraction   time that the multiply-adds of projections and classifier need at the speed of large matrix
                            products in the same precision, over the step's time: at 1 a step would do nothing else
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import options
from benchmarks.fft_network import FourierNetwork
from benchmarks.geometries import GEOMETRIES
from benchmarks.options import PRECISIONS
from benchmarks.yardstick import MULTIPLY_ADDS, Yardstick, seconds
from pipeline.models.scattering import Block, ScatteringNetwork
from pipeline.runtime import malloc


def training_step(network: nn.Module, images: Tensor, labels: Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """A forward and backward pass without the optimizer's step; gradients are allocated each time, as in training."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = network(images)
        nn.functional.cross_entropy(logits.float(), labels).backward()

    return step


def learned_multiply_adds(network: ScatteringNetwork) -> int:
    """Real multiplications with an addition in projections and classifier, for one image and one training step.

    Each product is needed three times: forward, for the gradient of the weights, and for that of its input; the last is
    not needed in the first block, before which nothing is learned. What is real after the modulus counts as real.
    """
    blocks = [block for block in network.blocks if isinstance(block, Block)]
    forward = [math.prod(block.wavelets.output) * block.projection.multiply_adds() for block in blocks]
    return 3 * sum(forward) - forward[0] + 3 * network.classifier.multiply_adds()


def measure(
    step: Callable[[], None], unit: Callable[[], None], products: Callable[[], None], rounds: int
) -> list[float]:
    """Median seconds of a step, of the unit and of the products in the step's precision, each timed once a round."""
    works = (step, unit, products)
    for work in works:
        work()
    times = [[seconds(work) for work in works] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> int:
    parser = options.parser(__doc__, rounds=7)
    parser.add_argument("--batch", type=options.count, help="images in a step [cifar: 64, imagenet: 4]")
    parser.add_argument("--oracle", action="store_true", help="time a plain network with FFTs instead, as it is")
    chosen = parser.parse_args()
    if chosen.oracle and chosen.precision != "fp32":
        parser.error("--oracle is complex, which has no bfloat16: leave --precision out")

    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    geometry, dtype = GEOMETRIES[chosen.geometry], PRECISIONS[chosen.precision]
    batch = chosen.batch or geometry.batch
    ours = geometry.network(chosen.skip)
    necessary = batch * learned_multiply_adds(ours)
    if not chosen.oracle:
        malloc.keep_freed_memory()  # as every worker of ours does
    network = FourierNetwork(geometry, chosen.skip) if chosen.oracle else ours
    images = torch.randn(batch, 3, geometry.size, geometry.size)
    labels = torch.randint(geometry.classes, (batch,))
    step = training_step(network, images, labels, dtype)
    took, unit, products = measure(step, Yardstick(), Yardstick(dtype), chosen.rounds)

    kind = "plain FFT network" if chosen.oracle else "phase-collapse network"
    print(
        f"{chosen.geometry}{' with skip' if chosen.skip else ''}, {kind}, batch {batch}, {chosen.precision}, "
        f"{chosen.threads} threads: median of {chosen.rounds} steps {took:.3f} s, Y = {unit:.3f} s"
    )
    print(
        f"matrix products: {2e-9 * MULTIPLY_ADDS / unit:.0f} GFLOP/s in fp32, "
        f"{2e-9 * MULTIPLY_ADDS / products:.0f} in {chosen.precision}; "
        f"the step's learned products: {2e-9 * necessary:.0f} GFLOP"
    )
    result = {
        "yardsticks": round(took / unit, 3),
        "images_per_second": round(batch / took, 2),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "matmul_limit_fraction": round(necessary / MULTIPLY_ADDS * products / took, 3),
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
