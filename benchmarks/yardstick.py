"""What this machine can do: matrix products, which every figure is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SIDE = 2048
PRODUCTS = 10
MULTIPLY_ADDS = PRODUCTS * SIDE**3
"""In one yardstick."""


def seconds(work: Callable[[], object]) -> float:
    """Seconds that one call of `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Yardstick:
    """Ten products of 2048×2048 matrices in `dtype`; in float32 their time is the unit Y of the model benchmarks."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._left, self._right = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
        self._out = torch.empty(SIDE, SIDE, dtype=dtype)

    def __call__(self) -> None:
        for _ in range(PRODUCTS):
            torch.mm(self._left, self._right, out=self._out)
