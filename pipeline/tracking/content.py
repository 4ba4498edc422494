"""What a tracking store gets of a run, from the files in its folder: one function for each kind of thing."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import UserError
from pipeline.runs import history, paths
from pipeline.runs.history import EpochRecord
from pipeline.runs.journal import JournalReader
from pipeline.tracking import run_card
from pipeline.tracking.ledger import Target

FOLDER_TAG = "phasecollapse.folder"
FACTS = (
    paths.IDENTITY,
    paths.HISTORY,
    paths.NETWORK,
    paths.ENVIRONMENT,
    paths.TRACKING,
    paths.REPORT,
    paths.PICTURES,
)
"""Files and folders of a run that its card is about."""


class Point(NamedTuple):
    """Metrics at one point of their curves."""

    metrics: dict[str, float]
    time: float
    """Seconds since 1970."""
    step: int
    """Training steps since the start of the run."""


class Journals:
    """The records of a run, or of a search, by name of their journal, in the order in which they were written.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._readers: dict[str, JournalReader[history.StepRecord]] = {}

    def read(self) -> dict[str, list[Point]]:
        """All records so far.

        Raises:
            OSError: a file cannot be read at this moment.
        """
        names = [paths.STEPS, paths.BEST, *(f"{paths.SYSTEM}/{file.name}" for file in self._machines())]
        found = {paths.HISTORY: epoch_points(history.read(self._folder))}
        for name in names:
            reader = self._readers.setdefault(name, history.step_reader(self._folder / name))
            found[name] = [Point(record.metrics, record.recorded_at, record.step) for record in reader.read()]
        found[paths.NETWORK] = network_points(self._folder)
        return {name: points for name, points in found.items() if points}

    def _machines(self) -> list[Path]:
        return sorted((self._folder / paths.SYSTEM).glob("*.jsonl"))


def network_points(folder: Path) -> list[Point]:
    """Size and costs of the network as metrics, by which MLflow's pages can sort and draw."""
    with suppress(OSError, ValueError):  # not there yet, or lost
        counts = json.loads((folder / paths.NETWORK).read_text(encoding="utf-8"))
        metrics = {f"network/{name}": float(count) for name, count in counts.items()}
        return [Point(metrics, (folder / paths.IDENTITY).stat().st_mtime, 0)]
    return []


def epoch_points(records: Sequence[EpochRecord]) -> list[Point]:
    """The metrics of epochs, over training steps; and, where an epoch is the best so far by top-1, as ``best/…``."""
    points, best = [], -1.0
    for record in records:
        metrics = dict(record.metrics)
        subset = next((key.removesuffix("/top5") for key in metrics if key.endswith("/top5")), None)
        if subset and (score := metrics[f"{subset}/top1"]) > best:
            best = score
            metrics |= {f"best/{key}": metrics[key] for key in record.metrics if key.startswith(f"{subset}/")}
            metrics["best/epoch"] = float(record.epoch)
        points.append(Point(metrics, record.finished_at, record.step if record.step is not None else record.epoch))
    return points


def artifacts(folder: Path, target: Target) -> dict[str, Path]:
    """Name among the artifacts → file or folder; those that do not exist, or have no content yet, are left out."""
    wanted = {name: folder / path for path, name in target.artifacts.items()}
    wanted |= {name: folder / name for name in (paths.EVENTS, paths.PICTURES, paths.REPORT)}
    if target.status == "FAILED":
        wanted[paths.ERROR_LOG] = folder / paths.ERROR_LOG
    return {name: path for name, path in wanted.items() if path.exists()}


def tags(folder: Path, target: Target) -> dict[str, str]:
    """Tags of the run: those of its command, and hardware and versions of its workers."""
    environment: dict[str, str] = {}
    with suppress(OSError, ValueError):  # not there yet, or lost
        environment = json.loads((folder / paths.ENVIRONMENT).read_text(encoding="utf-8"))
    return {**environment, **target.tags, FOLDER_TAG: str(folder.absolute())}


def description(folder: Path) -> str:
    """The description of a run, or of a search that has ended, in Markdown: its card."""
    stamps = []
    for name in FACTS:
        with suppress(OSError):
            stamps.append((name, (folder / name).stat().st_mtime_ns))
    if stamps and stamps[0][0] == paths.IDENTITY:
        return _card(folder, tuple(stamps))
    return run_card.search_markdown(folder)


@functools.lru_cache(1000)
def _card(folder: Path, stamps: tuple[tuple[str, int], ...]) -> str:
    try:
        return run_card.markdown(run_card.read(folder), linked=True)
    except UserError:  # damaged
        return ""
