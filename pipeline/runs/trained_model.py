"""Loads a trained network from the files of a checkpoint. Loading runs no code from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_prep.common.errors import UserError, first_line
from data_prep.format.manifest import ImageClass
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.runs import checkpoint_store, paths

Which = Literal["best", "last"]

FILES = (paths.MODEL, paths.SETTINGS, paths.CLASSES)
"""Files of a checkpoint that a trained network consists of."""


class ModelDescription(NamedTuple):
    """The settings and the classes of a checkpoint."""

    settings: Settings
    classes: tuple[ImageClass, ...]


@dataclass(frozen=True)
class TrainedModel:
    """A trained network, its classes and its settings."""

    network: models.ImageNetwork
    """In evaluation mode, on the CPU: uint8 RGB pixels (B, H, W, 3) → logits (B, classes)."""
    classes: tuple[str, ...]
    """The name of each class, in the order of the logits."""
    class_ids: tuple[str, ...]
    settings: Settings
    """Settings of the run; images must be settings.data.image_size pixels wide and high."""


def load(path: str | Path) -> TrainedModel:
    """Loads the network of a checkpoint.

    Args:
        path: folder of a run, whose latest checkpoint is used, or of one checkpoint.

    Raises:
        UserError: `path` is neither, or its files are damaged.
    """
    folder = find(Path(path))
    settings, classes = describe(folder)
    network = models.build(settings.model, len(classes), settings.data.image_size, settings.training.seed)
    put_weights(folder, network)
    names, ids = (tuple(getattr(one, field) for one in classes) for field in ("name", "id"))
    return TrainedModel(network.eval(), names, ids, settings)


def find(path: Path) -> Path:
    """The folder of a checkpoint: `path` itself, or the latest checkpoint of the run in the folder `path`.

    Its network has been compared with the hashes that were stored with it.

    Raises:
        UserError: it is neither a checkpoint nor a run that has one, or the checkpoint is damaged.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name the folder of a run, or of one of its checkpoints")
    candidates = [path, *reversed(paths.stored_checkpoints(path))]
    for folder in candidates:
        if (folder / paths.MODEL).is_file() or checkpoint_store.describe(folder).files:
            return _undamaged(folder)
    if (path / paths.IDENTITY).is_file():
        raise UserError(f"run {path} has no checkpoint yet: train it for one epoch first")
    raise UserError(f"{path} is not a checkpoint, nor a run: it has no {paths.MODEL} and no {paths.CHECKPOINTS}")


def _undamaged(checkpoint: Path) -> Path:
    """The checkpoint itself. One that was copied out of its run without its hashes cannot be compared with them.

    Raises:
        UserError: it is damaged; names the newest whole one beside it.
    """
    if checkpoint.parent.name != paths.CHECKPOINTS and not (checkpoint / paths.DESCRIPTION).exists():
        return checkpoint
    problem = checkpoint_store.damage(checkpoint, FILES)
    if problem is None:
        return checkpoint
    whole = _last_whole(one for one in paths.checkpoints_in(checkpoint.parent) if one != checkpoint)
    remedy = f"name {whole}, the newest one that is whole" if whole else "no other one beside it is whole"
    raise UserError(f"checkpoint {checkpoint} is damaged ({problem}): {remedy}")


def best_and_last(run: Path) -> dict[Which, Path]:
    """The checkpoint with the highest score and the latest one, of those that the run in the folder `run` keeps and
    that are whole. They may be the same; one is missing if there is none."""
    stored = paths.stored_checkpoints(run)
    scores = {path: score for path in stored if (score := checkpoint_store.describe(path).score) is not None}
    ascending: dict[Which, list[Path]] = {
        "best": sorted(scores, key=lambda path: (scores[path], path.name)),
        "last": stored,
    }
    return {which: whole for which, order in ascending.items() if (whole := _last_whole(order))}


def _last_whole(checkpoints: Iterable[Path]) -> Path | None:
    """The last of the checkpoints whose network is not damaged."""
    whole = (one for one in reversed(list(checkpoints)) if checkpoint_store.damage(one, FILES) is None)
    return next(whole, None)


def describe(checkpoint: Path) -> ModelDescription:
    """The settings and classes of a checkpoint.

    Raises:
        UserError: its files are damaged.
    """
    settings = settings_io.load(checkpoint / paths.SETTINGS, stored=True)
    if not (checkpoint / paths.SETTINGS).read_text(encoding="utf-8").endswith(settings_io.END_OF_DOCUMENT):
        raise UserError(f"{checkpoint / paths.SETTINGS} is truncated: use another checkpoint")
    try:
        content = from_json((checkpoint / paths.CLASSES).read_bytes())
        return ModelDescription(settings, tuple(ImageClass(**one) for one in content))
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise UserError(
            f"checkpoint {checkpoint} is damaged ({first_line(error)}): remove it, or name another one"
        ) from None


def read_weights(checkpoint: Path, file: str = paths.MODEL) -> dict[str, Tensor]:
    """The parameters and running statistics in a file of a checkpoint, by name, on the CPU.

    Raises:
        UserError: its file is damaged.
    """
    try:
        return load_file(checkpoint / file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {checkpoint} is damaged ({first_line(error)}): remove it, or name another one"
        ) from None


def put_weights(checkpoint: Path, network: models.ImageNetwork, file: str = paths.MODEL) -> None:
    """Loads all weights of a checkpoint into `network`.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    weights: Mapping[str, Tensor] = read_weights(checkpoint, file)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"checkpoint {checkpoint} does not fit the network ({first_line(error)})") from None
