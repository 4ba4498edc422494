"""Networks that start with a checkpoint, in this process and in one of several workers (which import little)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pipeline import models
from pipeline.config.model_schema import ModelSettings, ScatteringSettings
from pipeline.config.schema import DataSettings, Settings, StartSettings
from pipeline.training import finetune
from pipeline.training.optimizers import build_optimizer
from tests.helpers.checkpoints import image_classes

MODEL = ScatteringSettings(widths=(3, 4))


def settings_of(checkpoint: Path, *freeze: str, model: ModelSettings = MODEL, size: int = 16) -> Settings:
    return Settings(
        data=DataSettings(path="somewhere", image_size=size),
        model=model,
        start=StartSettings(checkpoint=str(checkpoint), freeze=freeze),
    )


def started(settings: Settings, names: str = "abc") -> models.ImageNetwork:
    """A network as a worker has it before the first epoch."""
    network = models.build(settings.model, len(names), settings.data.image_size, seed=1)
    finetune.freeze(network, settings)
    finetune.load(network, settings, image_classes(names), finetune.digest(settings))
    return network


def train_in_rank(rank: int, checkpoint: Path) -> dict[str, Tensor]:
    """Three steps of one of two workers, on images of its own: its network's tensors."""
    settings = settings_of(checkpoint, "blocks.0", "classifier.normalization")
    network = started(settings, "abcd")
    distributed = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = build_optimizer(network, settings.optimizer)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        distributed.train()
        pixels = torch.randint(0, 256, (6, 16, 16, 3), generator=generator, dtype=torch.uint8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(distributed(pixels), torch.arange(6) % 4).backward()
        optimizer.step()
    return network.state_dict()
