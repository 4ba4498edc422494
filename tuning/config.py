"""The settings tree of a search: what is searched, around the settings of one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_prep.common.errors import UserError
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.registered import Registered
from pipeline.config.schema import Settings
from pipeline.config.section import MAY_CHANGE, FolderName, Positive, Section
from pipeline.config.settings_io import load_yaml, override, resolve


class SearchSection(Section):
    """Which networks are tried, on what budget, and what decides between them."""

    name: FolderName
    """Folder of the search under `train.run.storage`; the runs of its trials lie in it."""
    depths: tuple[Positive, ...] = ()
    """Numbers of blocks to try, each with each of `widths`."""
    widths: tuple[Positive, ...] = ()
    """Widths of the first block to try; later blocks are twice as wide at each octave (see tuning/space.py)."""
    max_width: Positive = 512
    """No block gets wider than this."""
    candidates: tuple[dict[str, Any], ...] = ()
    """Further trials, named one by one: each has `widths`, and may set fields of model and optimizer by their dotted
    names, as in `{widths: [8, 16], optimizer.learning_rate: 0.3}`. They start after those of the grid."""
    trials: Positive | None = None
    """How many points of the grid depths × widths are tried, drawn at random; by default all of them. `candidates`
    come on top."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Decides which points of the grid are drawn."""
    searcher: Annotated[str, Registered("tuning.space:SEARCHERS")] = "grid"
    """Chooses the points that are tried: grid, all points of depths × widths or `trials` of them."""
    scheduler: Annotated[str, Registered("tuning.schedulers:SCHEDULERS")] = "pareto_halving"
    """Decides which trials continue after each epoch: pareto_halving, by error and cost together; asha and hyperband,
    by error alone; median, which stops those worse than the median; none: every trial trains for all epochs."""
    cost: Literal["multiply_adds", "parameters"] = "multiply_adds"
    """What pareto_halving weighs against the error."""
    max_concurrent: Annotated[Positive | None, MAY_CHANGE] = None
    """Trials that train at the same time; by default, and at most, as many as fit on the cluster."""
    gpu_share: Annotated[float, Field(gt=0, le=1), MAY_CHANGE] = 1.0
    """Share of a GPU that a trial of one worker takes: 0.5 trains two trials on each GPU at the same time."""
    grace_epochs: Positive = 2
    """No trial is stopped before it has trained for this many epochs."""
    reduction_factor: Annotated[float, Field(gt=1)] = 2.0
    """pareto_halving, asha, hyperband: at `grace_epochs`, and at each multiple of it by this factor, a trial continues
    only if it is among the best 1/reduction_factor of those that have reached that epoch."""
    error: Literal["top1", "top5"] = "top1"
    """The error that decides, on training images held out: 1 − top-1 accuracy, or 1 − top-5."""

    @model_validator(mode="after")
    def _check_space(self) -> Self:
        if bool(self.depths) != bool(self.widths):
            raise ValueError("depths and widths make a grid together: give both, or neither")
        if self.searcher == "grid" and not self.depths and not self.candidates:
            raise ValueError("nothing to try: give depths and widths, or candidates")
        for candidate in self.candidates:
            if "widths" not in candidate:
                raise ValueError(f"each of candidates needs widths, and {candidate} has none")
        return self


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
        if self.model.octaves is not None and self.search.depths:
            raise ValueError("train.model.octaves must stay unset where search.depths varies the number of blocks")
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
