"""Budgets of a search: which networks are too large to be tried. Looked up on torch's meta device, without weights."""

from __future__ import annotations

import torch

from data_prep.format.manifest import Manifest
from pipeline import models
from pipeline.config.schema import Settings
from pipeline.launch import run_plan
from tuning.config import Constraints

ABOVE = "above search.constraints"


def costs(run: Settings, data: Manifest) -> dict[str, int]:
    """The network's number of `parameters`, and its `multiply_adds` for one image.

    Raises:
        UserError: the network cannot be built.
    """
    with torch.device("meta"):
        network = models.build(run.model, len(data.classes), run.data.image_size)
    return {"parameters": models.parameters(network), "multiply_adds": network.multiply_adds()}


def violated(constraints: Constraints, run: Settings, data: Manifest) -> str | None:
    """The budget that the network of a run exceeds; None if it exceeds none.

    Raises:
        UserError: the network cannot be built.
    """
    measured = costs(run, data)
    if constraints.max_memory is not None:
        measured["memory"] = run_plan.plan(run, data).memory_bytes
    for name, value in measured.items():
        limit = getattr(constraints, f"max_{name}")
        if limit is not None and value > limit:
            return f"{ABOVE}.max_{name}"
    return None


def is_budget(reason: str) -> bool:
    """Whether this is a reason of :func:`violated`."""
    return reason.startswith(ABOVE)
