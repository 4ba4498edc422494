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
from safetensors.torch import save_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from data_prep.errors import UserError
from data_prep.manifest import ImageClass
from pipeline import config, history, models
from pipeline.layout import CLASSES, MODEL, SETTINGS
from pipeline.models import trained
from pipeline.settings import Settings

TRAINING = "training.pt"


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


def save(folder: Path, training: Training, settings: Settings, classes: Sequence[ImageClass]) -> None:
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
    trained.put_weights(folder, training.network)
    try:
        state: dict[str, Any] = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        training.optimizer.load_state_dict(state["optimizer"])
        training.schedule.load_state_dict(state["schedule"])
        training.history = history.read(folder)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {folder} is damaged ({trained.first_line(error)}): remove it") from None
