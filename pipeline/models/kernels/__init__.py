"""What a GPU computes with instead of torch's operations, where that takes fewer passes over memory.

`elementwise` and `matrices` hold Triton kernels. Each does what torch's operations do beside its call, which are its
oracle: in :mod:`pipeline.models.fused`, `projection` and `batch_stats`. Triton comes with torch for GPUs; without it
torch's operations are used.
"""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


def of(x: Tensor) -> Any:
    """The functions of both modules, where a GPU computes on x without a compiler; otherwise None."""
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return None
    return load()


@functools.cache
def load() -> Any:
    """The functions of both modules; None without Triton. Imports Triton, for half a second."""
    try:
        modules = [importlib.import_module(f"{__name__}.{name}") for name in ("elementwise", "matrices")]
    except ImportError:
        return None
    return SimpleNamespace(**{name: value for module in modules for name, value in vars(module).items()})
