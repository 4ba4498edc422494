"""What a run saves, and how it comes back.

A checkpoint is a folder that can be read without executing code from it:

    model.safetensors   the network's parameters and running statistics: their moving average, if the run has one
    last.safetensors    if it has, those of the last step
    training.pt         optimizer, schedule, and how far the epoch under way is (tensors and plain values only)
    settings.yaml       the resolved settings; a run can be started again from them alone
    classes.json        index, id and name of each class
    history.json        what every epoch came to

Order and augmentation of the images are functions of seed, epoch and sample, and the network draws no random numbers
in training, so no generator has to be saved: a run resumed from a checkpoint ends with the same bits. Running
statistics are those of the first rank, which are the only ones that the other ranks ever take over.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as to_safetensors
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from data_prep.common.errors import UserError
from data_prep.format.manifest import ImageClass
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.metrics.epoch import EpochTotals
from pipeline.runs import history, trained_model
from pipeline.runs.paths import CLASSES, MODEL, SETTINGS, RunPosition

TRAINING, LAST = "training.pt", "last.safetensors"
_FILE_KEYS = {"correct": "hits", "data_wait_seconds": "waiting"}
"""Keys of training.pt that differ from the fields of EpochTotals: the file format is older than their names."""


@dataclass
class TrainState:
    """Everything that changes while a run goes on."""

    network: models.ImageNetwork
    optimizer: Optimizer
    schedule: LRScheduler
    history: list[history.EpochRecord]
    average: AveragedModel | None = None
    """Of the network over its steps, if the run keeps one."""
    epoch_in_progress: EpochTotals = field(default_factory=EpochTotals)
    """Of the epoch that has begun, if one has."""

    @property
    def eval_model(self) -> models.ImageNetwork:
        """The network that is evaluated and used afterwards."""
        return cast(models.ImageNetwork, self.average.module) if self.average else self.network

    @property
    def epochs_done(self) -> int:
        """The epoch that was finished last, counted from 1; 0 before the first."""
        return self.history[-1].epoch if self.history else 0

    @property
    def position(self) -> RunPosition:
        """Where the run is."""
        return RunPosition(self.epochs_done, self.epoch_in_progress.steps)


def save(folder: Path, training: TrainState, settings: Settings, classes: Sequence[ImageClass]) -> None:
    """Writes a checkpoint into an empty folder.

    Raises:
        OSError: it cannot be written. (Their own functions for files raise whatever they like when a disk is full.)
    """
    (folder / MODEL).write_bytes(_serialized(training.eval_model))
    if training.average:
        (folder / LAST).write_bytes(_serialized(training.network))
    state = {
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "under_way": {_FILE_KEYS.get(name, name): value for name, value in asdict(training.epoch_in_progress).items()},
        "averaged": int(training.average.n_averaged) if training.average else 0,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (folder / TRAINING).write_bytes(buffer.getbuffer())
    (folder / SETTINGS).write_text(settings_io.to_yaml(settings), encoding="utf-8")
    (folder / CLASSES).write_text(json.dumps([one.model_dump() for one in classes], indent=1), encoding="utf-8")
    history.write(folder, training.history)


def restore(folder: Path, training: TrainState) -> None:
    """Continues from a checkpoint: puts its state into `training`, which was built from the same settings.

    Raises:
        UserError: the checkpoint is damaged or belongs to another network.
    """
    trained_model.put_weights(folder, training.eval_model)
    if training.average:
        trained_model.put_weights(folder, training.network, LAST)
    try:
        state: dict[str, Any] = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        training.optimizer.load_state_dict(state["optimizer"])
        training.schedule.load_state_dict(state["schedule"])
        training.epoch_in_progress = EpochTotals(
            **{each.name: state["under_way"][_FILE_KEYS.get(each.name, each.name)] for each in fields(EpochTotals)}
        )
        if training.average:
            training.average.n_averaged.fill_(state["averaged"])
        training.history = history.read(folder)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {folder} is damaged ({trained_model.first_line(error)}): remove it") from None


def _serialized(network: models.ImageNetwork) -> bytes:
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content: bytes = to_safetensors(weights, metadata={"format": "pt"})
    return content
