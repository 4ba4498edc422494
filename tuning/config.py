"""The settings tree of a search: what is searched, around the settings of one run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from data_prep.common.errors import UserError
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.registered import Registered
from pipeline.config.schema import Settings
from pipeline.config.section import MAY_CHANGE, FolderName, Positive, Section
from pipeline.config.settings_io import load_yaml, override, resolve
from tuning.space.dimension import Dimension
from tuning.space.points import flatten, in_order, outside


def read_amount(value: Any) -> Any:
    """The whole number that a text stands for, also with a suffix: 500M, 1.5G, 64k; anything else as it is."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kMGT]?)\s*", value) if isinstance(value, str) else None
    if found is None:
        return value
    return round(float(found[1]) * 1000 ** (1 + "kMGT".index(found[2]) if found[2] else 0))


Amount = Annotated[Positive, BeforeValidator(read_amount)]


@dataclass(frozen=True)
class MayEnlarge:
    """Annotates a setting of a search that may change between its sessions: it decides which trials there are and which
    continue, but not what a trial that has ended means."""


MAY_ENLARGE = MayEnlarge()


class Constraints(Section):
    """Budgets: networks above one of them are not tried. Numbers may have a suffix, as in 500M."""

    max_multiply_adds: Amount | None = None
    """Of the forward pass of one image."""
    max_parameters: Amount | None = None
    """Learned numbers; a complex one counts as two."""
    max_memory: Amount | None = None
    """Bytes that a worker needs for a step, besides its libraries: as `memory` in the plan of `train --dry-run`."""


class SearchSection(Section):
    """Which networks are tried, on what budget, and what decides between them."""

    name: FolderName
    """Folder of the search under `train.run.storage`; the runs of its trials lie in it."""
    space: Annotated[dict[str, Dimension], MAY_ENLARGE] = Field(default={})
    """What differs between trials: `depth` and `width` of the first block, which later blocks exceed by the factor
    `growth` (2) at each octave, up to `max_width` (512); or `widths` of all blocks; and fields of model, optimizer and
    training, or `data.image_size`, by their dotted names. Each is a list of values, or a range such as `{log_uniform:
    [0.03, 1]}` (tuning/space/dimension.py)."""
    initial_points: Annotated[tuple[dict[str, Any], ...], MAY_ENLARGE] = ()
    """Points of the space that are tried first, as in `{depth: 4, width: 16}`; they count among `trials`."""
    candidates: Annotated[tuple[dict[str, Any], ...], MAY_ENLARGE] = ()
    """Further points, one by one, as in `{widths: [8, 16], optimizer.learning_rate: 0.3}`. They are tried after those
    of the space, and need not lie in it."""
    constraints: Annotated[Constraints, MAY_ENLARGE] = Constraints()
    trials: Annotated[Positive | None, MAY_ENLARGE] = None
    """How many points of the space are tried; by default all of a grid. `candidates` come on top."""
    seed: Annotated[int, Field(ge=0), MAY_ENLARGE] = 0
    """Decides which points are drawn."""
    searcher: Annotated[str, Registered("tuning.searchers:SEARCHERS"), MAY_ENLARGE] = "grid"
    """Chooses the points that are tried: grid, all points of the space or `trials` of them; random, which draws
    `trials` points; or optuna, which chooses each of `trials` points by the results of those before it."""
    sampler: Annotated[Literal["tpe", "nsga2"], MAY_ENLARGE] = "tpe"
    """How optuna chooses: tpe, tree-structured Parzen estimators, after 10 random points; nsga2, a genetic algorithm
    with a population of 20, for searches of hundreds of trials."""
    objective: Annotated[Literal["error", "frontier"] | None, MAY_ENLARGE] = None
    """What optuna looks for: error, the smallest one; frontier, the networks that no other beats in both error and
    `cost`. By default frontier with pareto_halving, error with other schedulers."""
    warm_start: Annotated[tuple[str, ...], MAY_ENLARGE] = ()
    """Earlier searches, whose trials optuna knows from the start: names of folders in `train.run.storage`, or paths. A
    trial is taken over if it has ended and a point of the space makes the same run."""
    scheduler: Annotated[str, Registered("tuning.schedulers:SCHEDULERS"), MAY_ENLARGE] = "pareto_halving"
    """Decides which trials continue after each epoch: pareto_halving, by error and cost together; asha and hyperband,
    by error alone; median, which stops those worse than the median; none: every trial trains for all epochs."""
    cost: Annotated[Literal["multiply_adds", "parameters"], MAY_ENLARGE] = "multiply_adds"
    """What pareto_halving, and optuna in search of a frontier, weigh against the error."""
    max_concurrent: Annotated[Positive | None, MAY_CHANGE] = None
    """Trials that train at the same time; by default, and at most, as many as fit on the cluster."""
    gpu_share: Annotated[float, Field(gt=0, le=1), MAY_CHANGE] = 1.0
    """Share of a GPU that a trial of one worker takes: 0.5 trains two trials on each GPU at the same time."""
    grace_epochs: Annotated[Positive, MAY_ENLARGE] = 2
    """No trial is stopped before it has trained for this many epochs."""
    reduction_factor: Annotated[float, Field(gt=1), MAY_ENLARGE] = 2.0
    """pareto_halving, asha, hyperband: at `grace_epochs`, and at each multiple of it by this factor, a trial continues
    only if it is among the best 1/reduction_factor of those that have reached that epoch."""
    finalists: Annotated[int, Field(ge=0), MAY_ENLARGE] = 0
    """Networks of the frontier, those with the smallest errors, that are trained again when all trials have ended: on
    all training images, with `final_seeds` seeds, and measured on the validation images."""
    final_seeds: Annotated[Positive, MAY_ENLARGE] = 3
    """Runs of each finalist, with the seeds `training.seed`, `training.seed` + 1, …"""
    final_epochs: Annotated[Positive | None, MAY_ENLARGE] = None
    """Epochs of finalists; by default those of the trials."""
    error: Literal["top1", "top5"] = "top1"
    """The error that decides, on training images held out: 1 − top-1 accuracy, or 1 − top-5."""

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        if self.searcher in ("grid", "random") and not self.space and not self.candidates:
            raise ValueError("nothing to try: give a space, or candidates")
        if self.searcher == "optuna" and not self.space:
            raise ValueError("space must be set where searcher is optuna: it chooses points of a space")
        if self.warm_start and self.searcher in ("grid", "random"):
            raise ValueError(
                f"warm_start must stay unset where searcher is {self.searcher}, which learns from no results: choose "
                "searcher: optuna"
            )
        in_order(self.space)  # raises what is wrong with conditions
        if self.searcher == "grid":
            for name, dimension in self.space.items():
                try:
                    dimension.values()
                except ValueError:
                    raise ValueError(
                        f"space.{name} is a range, and a grid needs `points` of it: give their number, or choose "
                        "searcher: random"
                    ) from None
        if self.searcher in ("random", "optuna") and self.space and self.trials is None:
            raise ValueError(f"trials must be set where searcher is {self.searcher}: a draw has no end")
        for point in self.initial_points:
            if why := outside(self.space, point):
                raise ValueError(
                    f"initial_points: {point} is no point of space: {why}; correct it, or move it to candidates"
                )
        if self.trials is not None and len(self.initial_points) > self.trials:
            raise ValueError(f"trials must be at least the number of initial_points, {len(self.initial_points)}")
        return self

    @field_validator("space", mode="before")
    @classmethod
    def _flatten_space(cls, space: Any) -> Any:
        return flatten(space) if isinstance(space, Mapping) else space

    @field_validator("initial_points", mode="before")
    @classmethod
    def _flatten_points(cls, points: Any) -> Any:
        each = points if isinstance(points, list | tuple) else [points]
        return [flatten(point) if isinstance(point, Mapping) else point for point in each]

    @property
    def seeks_frontier(self) -> bool:
        """Whether a searcher that learns looks at error and cost together."""
        return (self.objective or ("frontier" if self.scheduler == "pareto_halving" else "error")) == "frontier"


class SearchSettings(Section):
    """A search and the run that it varies."""

    train: Settings
    """The settings that all trials share. The search decides `model.widths` and the run's name, and measures on the
    images held out from training, whatever `data.evaluate_on` says."""
    search: SearchSection

    @property
    def model(self) -> ScatteringSettings:
        """The network that all trials vary."""
        if not isinstance(self.train.model, ScatteringSettings):
            raise ValueError(
                f"train.model.family must be scattering, not {self.train.model.family}: "
                "a search varies widths and depths of scattering networks"
            )
        return self.train.model

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.model.octaves is not None and {"depth", "widths"} & set(self.search.space):
            raise ValueError("train.model.octaves must stay unset where search.space varies the number of blocks")
        if self.train.run.name is not None:
            raise ValueError("train.run.name must stay unset: a search names the runs of its trials")
        if self.train.data.holdout == 0:
            raise ValueError("train.data.holdout must be above 0: a search selects on images held out from training")
        if self.train.cluster.workers == 0:
            raise ValueError("train.cluster.workers must be at least 1: trials run on the cluster")
        if self.search.grace_epochs > self.train.training.epochs:
            raise ValueError("search.grace_epochs must not exceed train.training.epochs")
        return self


def load(path: Path, assignments: Sequence[str] = ()) -> SearchSettings:
    """The settings of a search's configuration file, with overrides such as ``train.training.epochs=3``.

    Raises:
        UserError: the file or an override is wrong; the sentence names the field.
    """
    content = load_yaml(path)
    if "data" in content and "train" not in content:
        raise UserError(f"{path} describes a run, not a search: phasecollapse train {path}")
    return resolve(SearchSettings, override(content, assignments, SearchSettings), str(path), assignments)
