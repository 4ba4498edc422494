"""The search space: depth × width → widths of the blocks → the settings of a trial."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry, explain_faults
from pipeline.config.schema import Settings
from pipeline.config.settings_io import override, resolve
from pipeline.runs import paths
from tuning.config import SearchSettings


@dataclass(frozen=True)
class Candidate:
    """One point of the space: the widths of the blocks, and further settings by their dotted names."""

    widths: tuple[int, ...]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in a search and short enough for a folder, as in ``16-32-64`` or ``16-32-64_learning_rate-1e-05``."""
        parts = ["-".join(map(str, self.widths))]
        parts += [f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(self.overrides.items())]
        return paths.shorten(re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(parts)).strip("-._"))


def octave(block: int, first_factorized_block: int) -> int:
    """How often the image has been halved before `block` (counted from 0).

    Blocks before `first_factorized_block` halve it each, those from it on only every second one.
    """
    return min(block, first_factorized_block) + max(0, block - first_factorized_block) // 2


def block_widths(depth: int, first: int, max_width: int, first_factorized_block: int) -> tuple[int, ...]:
    """Widths of `depth` blocks: `first`, twice as many at each octave, never above `max_width`.

    Halving an image's sides leaves a quarter of its positions, so the multiply-adds of a block, which grow with the
    square of its width, stay about the same from octave to octave until `max_width` is reached.

    >>> block_widths(depth=6, first=16, max_width=48, first_factorized_block=0)
    (16, 16, 32, 32, 48, 48)
    """
    return tuple(min(max_width, first * 2 ** octave(block, first_factorized_block)) for block in range(depth))


def grid(settings: SearchSettings) -> list[Candidate]:
    """Every point of depths × widths, or as many as `search.trials` names, drawn by `search.seed`."""
    search, model = settings.search, settings.model
    points = [
        Candidate(block_widths(depth, width, search.max_width, model.first_factorized_block))
        for depth, width in itertools.product(search.depths, search.widths)
    ]
    points = list({candidate.name: candidate for candidate in points}.values())  # max_width makes some of them equal
    if search.trials is not None and search.trials < len(points):
        chosen = set(random.Random(search.seed).sample(range(len(points)), search.trials))
        points = [candidate for index, candidate in enumerate(points) if index in chosen]
    return points


SEARCHERS: Registry[Callable[[SearchSettings], list[Candidate]]] = Registry("search.searcher")
"""Searchers by name: settings → candidates, in the order in which they are tried. To add one, register its function."""
SEARCHERS.register("grid", grid)


def candidates(settings: SearchSettings) -> list[Candidate]:
    """The networks that a search tries, each once: those of its searcher, then those of `search.candidates`.

    Raises:
        UserError: a candidate's widths are not a list of numbers, or it sets what trials must share; or the registered
            searcher raises an exception, or returns something else.
    """
    searcher = settings.search.searcher
    with explain_faults(f"search.searcher: {searcher}"):
        chosen = list(SEARCHERS.find(searcher)(settings))
    if strange := [one for one in chosen if not isinstance(one, Candidate)]:
        raise UserError(f"search.searcher: {searcher} returns {strange[0]!r}: return a list of Candidates")
    named = [_named(dict(content)) for content in settings.search.candidates]
    return list({candidate.name: candidate for candidate in [*chosen, *named]}.values())


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
    return resolve(Settings, content, f"search.candidates, {candidate.name}")


def _named(content: dict[str, Any]) -> Candidate:
    widths = content.pop("widths")
    if not isinstance(widths, list) or not all(isinstance(width, int) for width in widths) or not widths:
        raise UserError(f"search.candidates: widths must be a list of whole numbers such as [8, 16], not {widths!r}")
    for key in content:
        if not key.startswith(("model.", "optimizer.")) or key == "model.widths":
            raise UserError(f"search.candidates: besides widths, fields of model and optimizer may be set, not '{key}'")
    return Candidate(tuple(widths), content)
