"""A point of the search space → widths of the blocks, and other settings → the run of a trial."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from pipeline.config.schema import Settings
from pipeline.config.settings_io import override, resolve
from pipeline.runs import paths
from tuning.config import SearchSettings
from tuning.space.points import VARIED

LAW = ("depth", "width", "growth", "max_width")
"""Names of the numbers that make the widths of all blocks, see :func:`block_widths`."""
SHARED = ("model.family", "model.widths", "model.octaves", "training.epochs", "training.callbacks")
"""Fields of VARIED that may not: the widths have names of their own, and schedulers compare trials epoch by epoch."""


@dataclass(frozen=True)
class Candidate:
    """One point of the space: the widths of the blocks, and further settings by their dotted names."""

    widths: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)
    coordinates: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The point that it was made of: name of a dimension → value."""

    @property
    def name(self) -> str:
        """Unique in a search and short enough for a folder, as in ``16-32-64`` or ``16-32-64_learning_rate-1e-05``."""
        parts = ["-".join(map(str, self.widths))]
        parts += [f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(self.overrides.items())]
        text = "_".join(parts)
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
        if plain != text:  # other characters became hyphens: another value may have become the same
            plain += f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
        return paths.shorten(plain)


def of_point(point: Mapping[str, Any], settings: SearchSettings, where: str) -> Candidate:
    """The candidate of a point: `widths`, or the law that `depth`, `width`, `growth` and `max_width` make, and further
    settings. Without any of these names it has the widths that all trials share.

    Args:
        where: the setting that the point comes from, for errors.

    Raises:
        UserError: what the point sets is no network, or no setting that a trial may have of its own.
    """
    others = {key: value for key, value in point.items() if key not in LAW and key != "widths"}
    if forbidden := [key for key in others if not key.startswith(VARIED) or key in SHARED]:
        raise UserError(
            f"{where}: '{forbidden[0]}' cannot differ between trials: besides widths, or depth, width, growth and "
            f"max_width, there may be fields of {', '.join(one.rstrip('.') for one in VARIED)}, but none of "
            f"{', '.join(SHARED)}"
        )
    law = {key: point[key] for key in LAW if key in point}
    if "widths" in point:
        widths = point["widths"]
        if law:
            raise UserError(f"{where}: give widths, or {' and '.join(law)}, not both")
        if not isinstance(widths, list | tuple) or not all(isinstance(one, int) for one in widths) or not widths:
            raise UserError(f"{where}: widths must be a list of whole numbers such as [8, 16], not {widths!r}")
        return Candidate(tuple(widths), others, point)
    if not law:
        return Candidate(settings.model.widths, others, point)
    if missing := [key for key in ("depth", "width") if key not in law]:
        raise UserError(f"{where}: {' and '.join(law)} need {' and '.join(missing)}, too")
    first = others.get("model.first_factorized_block", settings.model.first_factorized_block)
    try:
        widths = block_widths(law["depth"], law["width"], law.get("max_width", 512), first, law.get("growth", 2.0))
    except TypeError:
        raise UserError(f"{where}: {', '.join(LAW)} must be numbers, not {law}") from None
    return Candidate(widths, others, point)


def octave(block: int, first_factorized_block: int) -> int:
    """How often the image has been halved before `block` (counted from 0).

    Blocks before `first_factorized_block` halve it each, those from it on only every second one.
    """
    return min(block, first_factorized_block) + max(0, block - first_factorized_block) // 2


def block_widths(
    depth: int, first: int, max_width: int, first_factorized_block: int, growth: float = 2.0
) -> tuple[int, ...]:
    """Widths of `depth` blocks: `first`, `growth` times as many at each octave, never above `max_width`.

    Halving an image's sides leaves a quarter of its positions, so with a growth of 2 the multiply-adds of a block,
    which grow with the square of its width, stay about the same from octave to octave until `max_width` is reached.

    >>> block_widths(depth=6, first=16, max_width=48, first_factorized_block=0)
    (16, 16, 32, 32, 48, 48)
    """
    return tuple(
        min(max_width, max(1, round(first * growth ** octave(block, first_factorized_block)))) for block in range(depth)
    )


def trial_settings(settings: SearchSettings, candidate: Candidate, folder: Path, tracking_uri: str) -> Settings:
    """The run of one trial: the shared settings with the candidate's, measured on images held out from training.

    Args:
        folder: of the search; the run's own lies in it.
        tracking_uri: where the search is tracked, and therefore its trials.

    Raises:
        UserError: the candidate sets an unknown field, or a value that is not allowed.
    """
    content = settings.train.model_dump(mode="json")
    content["model"]["widths"] = list(candidate.widths)
    for key, value in candidate.overrides.items():
        content = override(content, [f"{key}={json.dumps(value)}"])
    content["data"]["path"] = str(Path(settings.train.data.path).absolute())  # trials run in folders of their own
    content["start"] = settings.train.start.absolute().model_dump(mode="json")
    content["data"]["evaluate_on"] = "holdout"
    content["run"] = {"name": candidate.name, "storage": str(folder)}
    content["tracking"]["uri"] = tracking_uri
    return resolve(Settings, content, f"trial {candidate.name}")
