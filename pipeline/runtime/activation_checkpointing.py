"""Activation checkpointing: blocks that keep only their input, and are recomputed in the backward pass.

A recomputation gives the same bits and changes nothing: running statistics are not updated a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_recomputing = ContextVar("recomputing", default=False)


def is_recomputing() -> bool:
    """Whether this forward pass recomputes an earlier one, for its intermediate results."""
    # A compiled graph updates statistics once, whatever it recomputes; older compilers cannot read the variable.
    return not torch.compiler.is_compiling() and _recomputing.get()


def run_block(block: nn.Module, x: Tensor, *, checkpointed: bool) -> Tensor:
    """block(x); if `checkpointed`, only x is kept for the backward pass, which recomputes the block."""
    if not checkpointed:
        return block(x)
    if torch.compiler.is_compiling():  # a compiled graph updates statistics once, whatever it recomputes
        return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first run and of the recomputation, which may be in the thread of a GPU's backward pass."""
    return nullcontext(), _recomputation()


@contextmanager
def _recomputation() -> Iterator[None]:
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)
