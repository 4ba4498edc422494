"""The checkpoints of a run: how they get into their folder whole, which one a run goes on from, which ones are kept.

A checkpoint is written under another name and renamed when it is complete. Its last file, checkpoint.json, says what
the others must hold, so that what was damaged later is noticed: the checkpoint before it is used then.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from data_prep.common.files import rename_durably, sync_folder
from pipeline.runs import paths
from pipeline.runs.paths import RunPosition

DESCRIPTION = "checkpoint.json"
PARTIAL, DISCARDED, DAMAGED = "partial-", "discarded-", "damaged-"
"""What names of checkpoints begin with that are being written, that are being replaced, and that were moved aside."""


@dataclass(frozen=True)
class Description:
    """The content of checkpoint.json."""

    score: float | None
    """What decides which checkpoints are the best, higher is better; None within an epoch."""
    files: dict[str, str]
    """SHA-256 of each of the other files."""


class Checkpoints:
    """The checkpoints of one run, for the one process that writes them.

    Args:
        folder: that holds them; made if it is missing.
        keep: how many of the newest stay.
        keep_best: how many of those with the highest scores stay besides.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_best: int = 0) -> None:
        self.folder = folder
        self._keep, self._keep_best = keep, keep_best

    def write(
        self, point: RunPosition, score: float | None, save: Callable[[Path], None], replaces: Path | None = None
    ) -> Path:
        """Stores what `save` writes into a folder: all of it under its name, or nothing.

        Args:
            replaces: a stored checkpoint that is removed once the new one is stored.

        Raises:
            OSError: the storage is full or away; what was stored before is untouched.
        """
        target = self.folder / point.name
        partial, discarded = (target.with_name(prefix + target.name) for prefix in (PARTIAL, DISCARDED))
        try:
            _remove(partial)
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                sync_folder(self.folder.parent)
            partial.mkdir()
            save(partial)
            description = Description(score, {file.name: digest(file) for file in sorted(partial.iterdir())})
            (partial / DESCRIPTION).write_text(json.dumps(asdict(description), indent=1), encoding="utf-8")
            if target.exists():  # left by a run that went on from before it
                target.rename(discarded)
            rename_durably(partial, target)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # a disk that is full gets its room back
            raise
        _remove(discarded)
        if replaces is not None and replaces != target:
            _remove(replaces)
        for old in set(paths.checkpoints_in(self.folder)) - self._kept():
            _remove(old)
        return target

    def recover(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and sentences about those that are not, which are moved aside.

        What an interrupted process left half-written is removed.
        """
        for prefix in (PARTIAL, DISCARDED):
            for leftover in self.folder.glob(f"{prefix}*"):
                _remove(leftover)
        complaints: list[str] = []
        for checkpoint in reversed(paths.checkpoints_in(self.folder)):
            problem = damage(checkpoint)
            if problem is None:
                return checkpoint, complaints
            aside = checkpoint.with_name(DAMAGED + checkpoint.name)
            _remove(aside)
            checkpoint.rename(aside)
            complaints.append(f"checkpoint {checkpoint.name} is damaged ({problem}) and was moved to {aside.name}")
        return None, complaints

    def _kept(self) -> set[Path]:
        everything = paths.checkpoints_in(self.folder)
        scores = {path: score for path in everything if (score := describe(path).score) is not None}
        best = sorted(scores, key=lambda path: (scores[path], path.name), reverse=True)
        return {*everything[-self._keep :], *best[: self._keep_best]}


def describe(checkpoint: Path) -> Description:
    """What checkpoint.json says; nothing where it cannot be read."""
    try:
        return Description(**json.loads((checkpoint / DESCRIPTION).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Description(None, {})


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a stored checkpoint; None if its files are those that were written."""
    files = describe(checkpoint).files
    if not files:
        return f"it has no {DESCRIPTION} that can be read"
    for name, expected in files.items():
        try:
            if digest(checkpoint / name) != expected:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
