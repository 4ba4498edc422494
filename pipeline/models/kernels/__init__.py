"""What a GPU computes with instead of torch's operations, where that takes fewer passes over memory.

`elementwise` holds Triton kernels, each of which has its oracle in :mod:`pipeline.models.fused`. Triton comes with
torch for GPUs; without it torch's operations are used.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor


def of(x: Tensor) -> Any:
    """The module `elementwise`, where a GPU computes on x without a compiler; otherwise None."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return None
    return load()


@functools.cache
def load() -> Any:
    """The module `elementwise`; None without Triton. Imports Triton, for half a second."""
    try:
        return importlib.import_module("pipeline.models.kernels.elementwise")
    except ImportError:
        return None
