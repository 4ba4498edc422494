"""Checkpoints of small networks, as runs leave them behind."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from data_prep.common.files import hash_file
from data_prep.format.manifest import ImageClass
from pipeline import models
from pipeline.config.model_schema import ModelSettings
from pipeline.config.schema import DataSettings, Settings
from pipeline.runs import paths, train_state
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import build_schedule


def image_classes(names: str = "abc") -> list[ImageClass]:
    """A class for each letter of `names`."""
    return [ImageClass(index=index, id=f"n-{name}", name=f"name of {name}") for index, name in enumerate(names)]


def save_checkpoint(
    folder: Path, model: ModelSettings, *, names: str = "abc", size: int = 16, seed: int = 0
) -> models.ImageNetwork:
    """A checkpoint of a network whose running statistics have moved; returns the network, in evaluation mode."""
    settings = Settings(data=DataSettings(path="somewhere", image_size=size), model=model)
    network = models.build(model, len(names), size, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.randint(0, 256, (8, size, size, 3), generator=generator, dtype=torch.uint8))
    optimizer = build_optimizer(network, settings.optimizer)
    schedule = build_schedule(optimizer, settings.optimizer, 1, 1)
    folder.mkdir(parents=True)
    train_state.save(folder, train_state.TrainState(network, optimizer, schedule, []), settings, image_classes(names))
    if folder.parent.name == paths.CHECKPOINTS:  # in a run, with hashes
        files = {file.name: hash_file(file) for file in folder.iterdir()}
        (folder / paths.DESCRIPTION).write_text(json.dumps({"score": None, "files": files}))
    return network.eval()
