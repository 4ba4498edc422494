"""Names of the files and folders of a run, for those who write them and those who only read them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

IDENTITY, CHECKPOINTS = "run.yaml", "checkpoints"
"""In a run's folder: what it was started with, and a folder for its checkpoints."""
STOP = "stop"
"""In a run's folder: asks the workers to save and to end; the first one removes it when that is done."""
ENVIRONMENT, REPORT, TRACE = "environment.json", "evaluation", "trace.json"
"""In a run's folder: hardware and versions, the report on the last evaluation, and the profiler's trace."""
MODEL, SETTINGS, CLASSES = "model.safetensors", "settings.yaml", "classes.json"
"""In a checkpoint: what a network is made of. The rest of it is for going on."""


class RunPosition(NamedTuple):
    """Where a run is: between two epochs, or within one."""

    epochs: int
    """Epochs that are finished."""
    steps: int = 0
    """Steps of the next epoch that are done."""

    @property
    def name(self) -> str:
        """Of the checkpoint there. Names sort as points do."""
        return f"epoch-{self.epochs:05d}" + (f"-step-{self.steps:07d}" if self.steps else "")


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder of them, those that are there in full, the newest last."""
    return sorted(folder.glob("epoch-*"))


def stored_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run's folder, those that are there in full, the newest last."""
    return checkpoints_in(run / CHECKPOINTS)
