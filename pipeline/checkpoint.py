"""What a run saves, and how it comes back.

A checkpoint is a folder that can be read without executing code from it:

    model.safetensors   the network's parameters and running statistics
    training.pt         optimizer, schedule and number of epochs (tensors and plain values only)
    settings.yaml       the resolved settings; a run can be started again from them alone
    classes.json        index, id and name of each class
    history.json        what every epoch came to

Order and augmentation of the images are functions of seed, epoch and sample, and the network draws no random numbers
in training, so no generator has to be saved: a run resumed from a checkpoint ends with the same bits.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data_prep.errors import UserError
from data_prep.manifest import ImageClass
from pipeline import config, history, models

MODEL, TRAINING, SETTINGS, CLASSES = "model.safetensors", "training.pt", "settings.yaml", "classes.json"


@dataclass
class Training:
    """Everything that changes while a run goes on."""

    network: models.ImageNetwork
    optimizer: Optimizer
    schedule: LRScheduler
    history: list[history.EpochRecord]

    @property
    def epochs_done(self) -> int:
        """The epoch that was finished last, counted from 1; 0 before the first."""
        return self.history[-1].epoch if self.history else 0


def folder_name(epoch: int) -> str:
    """Checkpoints sort by name as by epoch."""
    return f"epoch-{epoch:05d}"


def save(folder: Path, training: Training, settings: config.Settings, classes: Sequence[ImageClass]) -> None:
    """Writes a checkpoint into an empty folder."""
    weights = {name: value.detach().cpu().contiguous() for name, value in training.network.state_dict().items()}
    save_file(weights, folder / MODEL, metadata={"format": "pt"})
    torch.save(
        {"optimizer": training.optimizer.state_dict(), "schedule": training.schedule.state_dict()},
        folder / TRAINING,
    )
    (folder / SETTINGS).write_text(config.to_yaml(settings), encoding="utf-8")
    (folder / CLASSES).write_text(json.dumps([one.model_dump() for one in classes], indent=1), encoding="utf-8")
    history.write(folder, training.history)


def restore(folder: Path, training: Training) -> None:
    """Continues from a checkpoint: puts its state into `training`, which was built from the same settings.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    _load_weights(folder, training.network)
    try:
        state: dict[str, Any] = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        training.optimizer.load_state_dict(state["optimizer"])
        training.schedule.load_state_dict(state["schedule"])
        training.history = history.read(folder)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {folder} is damaged ({_first_line(error)}): remove it") from None


def load_network(folder: Path) -> tuple[models.ImageNetwork, config.Settings, list[ImageClass]]:
    """The network of a checkpoint, ready to evaluate on the CPU, with its settings and classes.

    Raises:
        UserError: `folder` is not a checkpoint, or is damaged.
    """
    if not (folder / MODEL).is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no {MODEL}")
    settings = config.load(folder / SETTINGS)
    try:
        classes = [ImageClass(**one) for one in json.loads((folder / CLASSES).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"checkpoint {folder} is damaged ({_first_line(error)})") from None
    network = models.build(settings.model, len(classes), settings.data.image_size, settings.training.seed)
    _load_weights(folder, network)
    return network.eval(), settings, classes


def _load_weights(folder: Path, network: models.ImageNetwork) -> None:
    try:
        network.load_state_dict(load_file(folder / MODEL))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} does not fit the network ({_first_line(error)}): remove it") from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
