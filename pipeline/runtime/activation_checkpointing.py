"""Blocks that keep nothing but their input for the backward pass, where they run again (activation checkpointing).

Running again has to change nothing: it gives the same bits, and running statistics do not move a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_again = ContextVar("again", default=False)


def is_recomputing() -> bool:
    """Whether this forward pass repeats one for its intermediate results."""
    return _again.get()


def run(block: nn.Module, x: Tensor, *, recompute: bool) -> Tensor:
    """block(x); with `recompute`, only x is kept for the backward pass."""
    if not recompute:
        return block(x)
    if torch.compiler.is_compiling():  # a compiled graph moves statistics once, whatever it computes again
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first run, and around the second, which may be in another thread: that of a GPU's backward pass."""
    return nullcontext(), _second_run()


@contextmanager
def _second_run() -> Iterator[None]:
    token = _again.set(True)
    try:
        yield
    finally:
        _again.reset(token)
