"""Names of the files and folders of a run, for those who write them and those who only read them."""

from __future__ import annotations

from pathlib import Path

IDENTITY, CHECKPOINTS = "run.yaml", "checkpoints"
"""In a run's folder: what it was started with, and a folder for the checkpoint of each epoch."""
MODEL, SETTINGS, CLASSES = "model.safetensors", "settings.yaml", "classes.json"
"""In a checkpoint: what a network is made of. The rest of it, training.pt and history.json, is for going on."""


def checkpoint_name(epoch: int) -> str:
    """Checkpoints sort by name as by epoch."""
    return f"epoch-{epoch:05d}"


def stored_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, those that are there in full, the last one last."""
    return sorted((run / CHECKPOINTS).glob("epoch-*"))
