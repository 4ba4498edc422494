"""A trained network, from the files of a checkpoint alone: loading it executes nothing of what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_prep.common.errors import UserError
from data_prep.format.manifest import ImageClass
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.runs import paths


class Description(NamedTuple):
    """What a checkpoint says of its network, without the weights."""

    settings: Settings
    classes: tuple[ImageClass, ...]


@dataclass(frozen=True)
class Trained:
    """A network with what is needed to use it."""

    network: models.ImageNetwork
    """In evaluation mode, on the CPU: uint8 pixels (B, H, W, 3), red, green and blue → logits (B, classes)."""
    classes: tuple[str, ...]
    """What people call each class, in the order of the logits."""
    settings: Settings
    """Those of the run; the network is for images of settings.data.image_size pixels a side."""


def load(path: str | Path) -> Trained:
    """The network of a run's folder, as of its last checkpoint, or of the folder of one checkpoint.

    Raises:
        UserError: `path` is neither, or its files are damaged.
    """
    folder = find(Path(path))
    settings, classes = describe(folder)
    network = models.build(settings.model, len(classes), settings.data.image_size, settings.training.seed)
    put_weights(folder, network)
    return Trained(network.eval(), tuple(one.name for one in classes), settings)


def find(path: Path) -> Path:
    """The checkpoint that `path` names: itself, or the last one of a run's folder.

    Raises:
        UserError: it is neither a checkpoint nor a run that has one.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist: name the folder of a run, or of one of its checkpoints")
    candidates = [path, *reversed(paths.stored_checkpoints(path))]
    for folder in candidates:
        if (folder / paths.MODEL).is_file():
            return folder
    if (path / paths.IDENTITY).is_file():
        raise UserError(f"run {path} has no checkpoint yet: train it for an epoch first")
    raise UserError(f"{path} is not a checkpoint, nor a run: it has no {paths.MODEL} and no {paths.CHECKPOINTS}")


def describe(checkpoint: Path) -> Description:
    """The settings and classes of a checkpoint.

    Raises:
        UserError: its files are damaged.
    """
    settings = settings_io.load(checkpoint / paths.SETTINGS)
    if not (checkpoint / paths.SETTINGS).read_text(encoding="utf-8").endswith(settings_io.END_OF_DOCUMENT):
        raise UserError(f"{checkpoint / paths.SETTINGS} is damaged, its end is missing: use another checkpoint")
    try:
        content = json.loads((checkpoint / paths.CLASSES).read_text(encoding="utf-8"))
        return Description(settings, tuple(ImageClass(**one) for one in content))
    except (OSError, ValueError, TypeError, ValidationError) as error:
        raise UserError(
            f"checkpoint {checkpoint} is damaged ({first_line(error)}): remove it, or name another one"
        ) from None


def read_weights(checkpoint: Path, file: str = paths.MODEL) -> dict[str, Tensor]:
    """The parameters and running statistics of a checkpoint, by name, on the CPU.

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
    """Gives `network` the weights of a checkpoint, all of them.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    weights: Mapping[str, Tensor] = read_weights(checkpoint, file)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"checkpoint {checkpoint} does not fit the network ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
