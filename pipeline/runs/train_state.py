"""The state of a training run: what a checkpoint holds, how it is written and restored.

A checkpoint is a folder that can be read without executing code from it:

    model.safetensors   the network's parameters and running statistics: their moving average, if the run has one
    last.safetensors    if it has, those of the last step
    training.pt         optimizer, schedule and the totals of an unfinished epoch (tensors and plain values only)
    settings.yaml       the resolved settings; a run can be started again from them alone
    classes.json        index, id and name of each class
    history.json        the metrics of each finished epoch
    identity.yaml       a copy of the run's run.yaml

Order and augmentation of the images are functions of seed, epoch and sample, and the network draws no random numbers
in training, so no generator has to be saved: a run resumed from a checkpoint ends with the same bits. Running
statistics are those of the first rank, which are the only ones that the other ranks ever take over.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as to_safetensors
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel

from data_prep.common.errors import UserError, first_line
from data_prep.format.manifest import ImageClass
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.metrics.epoch import EpochTotals
from pipeline.runs import history, trained_model
from pipeline.runs.paths import CLASSES, LAST, MODEL, SETTINGS, TRAINING, RunPosition


@dataclass
class TrainState:
    """Everything that changes in the course of a run."""

    network: models.ImageNetwork
    optimizer: Optimizer
    schedule: LRScheduler
    history: list[history.EpochRecord]
    average: AveragedModel | None = None
    """Exponential moving average of the network over its steps, if the run keeps one."""
    epoch_in_progress: EpochTotals = field(default_factory=EpochTotals)
    """Totals of the unfinished epoch; zeros between epochs."""

    @property
    def eval_model(self) -> models.ImageNetwork:
        """The network that is evaluated and exported: the average, if the run keeps one."""
        return cast(models.ImageNetwork, self.average.module) if self.average else self.network

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return self.history[-1].epoch if self.history else 0

    @property
    def position(self) -> RunPosition:
        """Finished epochs and steps of the unfinished one."""
        return RunPosition(self.epochs_done, self.epoch_in_progress.steps)


def save(folder: Path, training: TrainState, settings: Settings, classes: Sequence[ImageClass]) -> None:
    """Writes a checkpoint into an empty folder.

    Raises:
        OSError: it cannot be written. The libraries' own file functions raise other errors when a disk is full, so they
            serialize to memory here.
    """
    (folder / MODEL).write_bytes(_serialized(training.eval_model))
    if training.average:
        (folder / LAST).write_bytes(_serialized(training.network))
    state = {
        "optimizer": training.optimizer.state_dict(),
        "schedule": training.schedule.state_dict(),
        "under_way": _totals_to_file(training.epoch_in_progress),
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
        _check_optimizer(folder, training.optimizer, state["optimizer"]["param_groups"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.schedule.load_state_dict(state["schedule"])
        _set_learning_rate(training.optimizer, training.schedule)
        training.epoch_in_progress = _totals_from_file(state["under_way"])
        if training.average:
            training.average.n_averaged.fill_(state["averaged"])
        training.history = history.read(folder)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {folder} is damaged ({first_line(error)}): remove it") from None


def _set_learning_rate(optimizer: Optimizer, schedule: LRScheduler) -> None:
    """Computes the learning rate of the next step again: a run that is given more epochs has another schedule."""
    if isinstance(schedule, LambdaLR):
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, factors, strict=True):
            group["lr"] = base * factor


def _check_optimizer(folder: Path, optimizer: Optimizer, stored: list[dict[str, Any]]) -> None:
    """A name may stand for another optimizer than when the run was stopped, if a package outside this one defines it.

    Raises:
        UserError: the optimizer has other options than the one that was stored. (Versions of torch add some to both.)
    """
    ours, theirs = ({*group} - {"params"} for group in (optimizer.param_groups[0], stored[0]))
    if (new := sorted(ours - theirs)) and (gone := sorted(theirs - ours)):
        raise UserError(
            f"optimizer.kind: checkpoint {folder} is of another optimizer, with {', '.join(gone)} instead of "
            f"{', '.join(new)}: register the former again, or start a new run with start.checkpoint"
        )


def _serialized(network: models.ImageNetwork) -> bytes:
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content: bytes = to_safetensors(weights, metadata={"format": "pt"})
    return content


def _totals_to_file(totals: EpochTotals) -> dict[str, Any]:
    """The entry `under_way` of training.pt, whose keys are older than the names of the metrics. Metrics that the format
    does not know go into two entries of their own."""
    image_sums, step_sums = dict(totals.image_sums), dict(totals.step_sums)
    content: dict[str, Any] = {
        "steps": totals.steps,
        "position": totals.position,
        "loss": image_sums.pop("loss", 0.0),
        "hits": image_sums.pop("top1", 0.0),
        "images": totals.images,
        "skipped": totals.skipped,
        "gradient_norm": step_sums.pop("gradient_norm", 0.0),
        "seconds": totals.seconds,
        "waiting": totals.data_wait_seconds,
        "learning_rate": totals.learning_rate,
    }
    more = {"image_sums": image_sums, "step_sums": step_sums}
    return content | {name: sums for name, sums in more.items() if sums}


def _totals_from_file(content: dict[str, Any]) -> EpochTotals:
    return EpochTotals(
        steps=content["steps"],
        position=content["position"],
        images=content["images"],
        skipped=content["skipped"],
        image_sums={"loss": content["loss"], "top1": content["hits"], **content.get("image_sums", {})},
        step_sums={"gradient_norm": content["gradient_norm"], **content.get("step_sums", {})},
        seconds=content["seconds"],
        data_wait_seconds=content["waiting"],
        learning_rate=content["learning_rate"],
    )
