"""What each epoch of a run came to: a list that every checkpoint carries and the run's folder shows."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "history.json"


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    """Counted from 1."""
    finished_at: float
    """Seconds since 1970. A record keeps its time when the run is resumed, so trackers see it once."""
    metrics: dict[str, float]


def write(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Puts the records into `folder`, in one step: a reader sees the old ones or the new ones."""
    write_atomically(folder / FILE, json.dumps([asdict(record) for record in records], indent=1))


def read(folder: Path) -> list[EpochRecord]:
    """The records in `folder`, by epoch; none where no epoch has been finished."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [EpochRecord(**record) for record in json.loads(text)]


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file as a whole: whoever is killed on the way leaves the old one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
