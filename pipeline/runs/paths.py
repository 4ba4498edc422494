"""Names of the files and folders of a run and of its checkpoints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

IDENTITY, CHECKPOINTS = "run.yaml", "checkpoints"
"""In a run's folder: its identity (the settings it was started with), and the folder of its checkpoints."""
STOP, SAVE = "stop", "save"
"""In a run's folder: files that ask the workers to save, and to end, too; rank 0 removes them when they have."""
LOCK, OWNER = "run.lock", "run.owner"
"""In a run's folder: held while a process trains the run, and which process that is."""
HISTORY, STEPS = "history.json", "steps.jsonl"
"""In a run's folder: metrics of each epoch (also in a checkpoint), and of each few steps."""
PROGRESS, EVENTS = "progress.json", "events.log"
"""In a run's folder: its current position, for the display, and what a user should read, with times."""
ENVIRONMENT, REPORT, TRACE = "environment.json", "evaluation", "trace.json"
"""In a run's folder: hardware and versions, the report on the last evaluation, and the profiler's trace."""
NETWORK = "network.json"
"""In a run's folder: numbers of parameters and multiply-adds of its network."""
PICTURES, TENSORBOARD = "pictures", "tensorboard"
"""In a run's folder: the folders of its pictures, and of its event files for TensorBoard."""
SAMPLES, CURVES, CONFUSION, MISTAKES = "samples.png", "curves.png", "confusion.png", "mistakes.png"
FILTERS, SPECTRA = "filters.png", "spectra.png"
"""In that folder: the first images that the network was fed; learning curves; confusion matrix and worst mistakes of
the last evaluation; the filter bank; and the singular values of the learned matrices."""
TRACKING, DELIVERED, DELIVERY_LOCK = "tracking.json", "delivered.json", "delivery.lock"
"""In a run's folder, and in a search's: what its tracking store is to have beside the metrics, what that store has
acknowledged, and a lock that is held while it is sent."""
SYSTEM = "system"
"""In a run's folder: a file for each machine that trains it, with its load."""
ERROR_LOG, ATTEMPTS = "error.log", "ray"
"""In a run's folder: why its last session failed, if it did, and Ray Train's own files, while workers train."""
START = "start"
"""In a run's folder, and in a search's: the checkpoint of start.checkpoint, if it came from MLflow."""
IDENTITY_COPY = "identity.yaml"
"""In a checkpoint: a copy of run.yaml, which replaces one that is missing or damaged."""
MODEL, SETTINGS, CLASSES = "model.safetensors", "settings.yaml", "classes.json"
"""In a checkpoint: all that a trained network consists of. Its other files are needed to resume training."""
TRAINING, LAST = "training.pt", "last.safetensors"
"""In a checkpoint: optimizer, schedule and totals; weights of the last step, where the others are averages."""
DESCRIPTION = "checkpoint.json"
"""In a checkpoint: the hashes of its other files, written last."""

SEARCH, SEARCH_LOCK, TRIALS, FINALS = "search.yaml", "search.lock", "trials.json", "finals.json"
"""In a search's folder, beside the folders of its trials: its identity, its lock, and status and errors of trials and
of finalists."""
SEARCH_TABLE, SEARCH_NUMBERS, SEARCH_FINDINGS = "table.md", "table.csv", "findings.txt"
SEARCH_PICTURE, SEARCH_CURVES, SEARCH_COORDINATES = "frontier.png", "curves.png", "coordinates.png"
"""In a search's folder, at its end: its trials, what they show in sentences; error against cost, learning curves, and
settings and error of all trials."""
BEST = "best.jsonl"
"""In a search's folder: the metrics of the trial that was the best, a line whenever they changed."""

LONGEST_NAME = 200
"""Most characters of a composed name of a folder: file systems allow 255 bytes."""


class RunPosition(NamedTuple):
    """Position of a run: between two epochs, or within one."""

    epochs: int
    """Finished epochs."""
    steps: int = 0
    """Finished steps of the next epoch."""

    @property
    def name(self) -> str:
        """Name of the checkpoint at this position. Names sort as positions do."""
        return f"epoch-{self.epochs:05d}" + (f"-step-{self.steps:07d}" if self.steps else "")


def shorten(name: str) -> str:
    """The name of a folder, or its beginning and a digest where it is too long for one."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - len(digest) - 1]}-{digest}"


def checkpoints_in(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder of checkpoints, the latest last."""
    return sorted(folder.glob("epoch-*"))


def stored_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, given its folder, the latest last."""
    return checkpoints_in(run / CHECKPOINTS)
