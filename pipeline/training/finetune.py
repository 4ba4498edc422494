"""Fine-tuning: a run starts with the weights of another network, parts of which may be frozen.

All parameters and running statistics are loaded, except the linear map of the classifier where the classes or its size
differ. This happens once, before the first epoch; a resumed run loads its own checkpoints.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data_prep.common.errors import UserError
from data_prep.common.files import hash_file
from data_prep.format.manifest import ImageClass
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.model_schema import ModelSettings, ScatteringSettings
from pipeline.config.schema import Settings
from pipeline.models import ImageNetwork
from pipeline.models.wavelets import octaves_of_blocks
from pipeline.runs import paths, run_folder, trained_model


@dataclass(frozen=True)
class Start:
    """The weights that a network starts with."""

    checkpoint: Path
    fresh: tuple[str, ...]
    """Parameters that keep their random initial values; empty if all are loaded."""
    frozen: int
    """Number of frozen parameters."""
    learned: int
    """Number of all parameters."""

    def __str__(self) -> str:
        words = f"weights from {self.checkpoint}"
        if self.fresh:
            words += f"; new: {', '.join(self.fresh)}"
        return words + (f"; frozen: {self.frozen:,} of {self.learned:,} parameters" if self.frozen else "")


def digest(settings: Settings) -> str | None:
    """SHA-256 of the weights that a run starts with; None for random weights.

    Raises:
        UserError: `start.checkpoint` names no checkpoint, and the run has none of its own.
    """
    if resumed := _identity_if_start_is_gone(settings):
        return resumed.start_digest
    checkpoint = _checkpoint(settings)
    return None if checkpoint is None else hash_file(checkpoint / paths.MODEL)


def check(settings: Settings, classes: Sequence[ImageClass]) -> Start | None:
    """The weights that a run starts with, checked on the meta device; None for random weights.

    Raises:
        UserError: `start.checkpoint` does not fit `model`, or `start.freeze` names no part of it, all of it, or one
            that would be random.
    """
    checkpoint = None if _identity_if_start_is_gone(settings) else _checkpoint(settings)
    if checkpoint is None:
        return None
    with torch.device("meta"):
        network = models.build(settings.model, len(classes), settings.data.image_size)
    freeze(network, settings)
    fresh = _load(network, checkpoint, settings, classes)
    parameters = dict(network.named_parameters())
    if stuck := [_short(name) for name in fresh if not parameters[name].requires_grad]:
        raise UserError(
            f"start.freeze: {stuck[0]} is new, as the checkpoint's is for other classes or another image size: "
            "leave it out, so that it is trained"
        )
    return Start(
        checkpoint,
        tuple(map(_short, fresh)),
        sum(parameter.numel() for parameter in parameters.values() if not parameter.requires_grad),
        sum(parameter.numel() for parameter in parameters.values()),
    )


def load(network: ImageNetwork, settings: Settings, classes: Sequence[ImageClass], expected: str | None) -> None:
    """Loads the weights that `settings.start` names into a new network.

    Args:
        expected: `digest` at the start of the run, so that all workers load the same weights.

    Raises:
        UserError: they do not fit, or have changed.
    """
    checkpoint = _checkpoint(settings)
    if checkpoint is None:
        return
    if hash_file(checkpoint / paths.MODEL) != expected:
        raise UserError(
            f"start.checkpoint: the weights in {checkpoint} have changed since the run was started, or are others on "
            "this node: name a checkpoint that stays as it is"
        )
    _load(network, checkpoint, settings, classes)


def freeze(network: ImageNetwork, settings: Settings) -> None:
    """Freezes the parts of `network` that `start.freeze` names.

    Raises:
        UserError: a name matches no part that has weights, or nothing would be left to train.
    """
    parts = {name: part for name, part in network.network.named_modules() if name and part.state_dict()}
    for pattern in settings.start.freeze:
        matching = fnmatch.filter(parts, pattern)
        if not matching:
            there = ", ".join(name for name in parts if name.count(".") < 2)
            raise UserError(f"start.freeze: no part is called '{pattern}'; there are {there}, and parts of these")
        network.freeze(parts[name] for name in matching)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("start.freeze: all parts are frozen, so that nothing is left to train: leave some of them out")


def _checkpoint(settings: Settings) -> Path | None:
    """The folder of the checkpoint to start with.

    Raises:
        UserError: there is none.
    """
    if settings.start.checkpoint is None:
        return None
    try:
        return trained_model.find(Path(settings.start.checkpoint))
    except UserError as error:
        raise UserError(f"start.checkpoint: {error}") from None


def _identity_if_start_is_gone(settings: Settings) -> run_folder.RunIdentity | None:
    """Identity of the run to resume, if it has checkpoints of its own and `start.checkpoint` no longer exists."""
    given, run = settings.start.checkpoint, settings.run
    if given is None or run.name is None or not paths.stored_checkpoints(Path(run.storage) / run.name):
        return None
    try:
        trained_model.find(Path(given))
    except UserError:
        return run_folder.read_identity(Path(run.storage) / run.name)
    return None


def _load(network: ImageNetwork, checkpoint: Path, settings: Settings, classes: Sequence[ImageClass]) -> list[str]:
    """Loads what fits; the names of the parameters that keep their random values."""
    its = trained_model.describe(checkpoint)
    if changes := settings_io.differences(_comparable(its.settings.model), _comparable(settings.model)):
        raise UserError(f"start.checkpoint: the network in {checkpoint} is another than that of model: {changes[0]}")
    weights, wanted = trained_model.read_weights(checkpoint), network.state_dict()
    linear = _linear_map(network)
    same_classes = [one.id for one in its.classes] == [one.id for one in classes]
    if not same_classes or any(_shape(weights, name) != wanted[name].shape for name in linear):
        weights |= {name: wanted[name] for name in linear}
    else:
        linear = []
    for name in sorted(weights.keys() | wanted.keys()):
        theirs, ours = _shape(weights, name), _shape(wanted, name)
        if theirs != ours:
            raise UserError(
                f"start.checkpoint: {name} is {_words(theirs)} in {checkpoint} and {_words(ours)} in the network of "
                "model: start from a checkpoint that this version wrote for the same model"
            )
    if not any(value.is_meta for value in wanted.values()):
        network.load_state_dict(weights)
    return linear


def _linear_map(network: ImageNetwork) -> list[str]:
    """Names of the parameters of the classifier's linear map, the last one of the network."""
    name, last = [(name, part) for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]
    return [f"{name}.{parameter}" for parameter, _ in last.named_parameters()]


def _comparable(model: ModelSettings) -> ModelSettings:
    """The same network in a normal form, without settings that matter in training alone."""
    model = model.model_copy(update={"sync_batch_stats": False})
    if not isinstance(model, ScatteringSettings):
        return model
    octaves = octaves_of_blocks(len(model.widths), model.first_factorized_block)
    normal = {
        "widths": model.channels,
        "width_multiplier": 1.0,
        "octaves": model.octaves or tuple(octave.value for octave in octaves),
        "first_factorized_block": 0,
    }
    return model.model_copy(update=normal)


def _short(name: str) -> str:
    """The name of a part as in `start.freeze`."""
    return name.removeprefix("network.")


def _shape(weights: dict[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None


def _words(shape: torch.Size | None) -> str:
    return "missing" if shape is None else f"of shape {tuple(shape)}"
