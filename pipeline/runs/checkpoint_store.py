"""The checkpoints of a run: writing them atomically, finding the one to resume from, and removing old ones.

A checkpoint is written under another name, flushed to disk and renamed. Its file checkpoint.json holds the hashes of
the others, so that later damage is detected; the run then resumes from the checkpoint before it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic_core import from_json

from data_prep.common.files import hash_file, rename_durably, sync_folder
from pipeline.runs import paths
from pipeline.runs.paths import DESCRIPTION, RunPosition

PARTIAL, DISCARDED, DAMAGED = "partial-", "discarded-", "damaged-"
"""Prefixes of checkpoints that are being written, that are being replaced, and that were found damaged."""


@dataclass(frozen=True)
class CheckpointDescription:
    """The content of checkpoint.json."""

    score: float | None
    """Ranks the checkpoints to keep, higher is better; None within an epoch."""
    files: dict[str, str]
    """SHA-256 of each of the other files."""


class Checkpoints:
    """The checkpoints of one run, for the one process that writes them.

    Args:
        folder: of the checkpoints; created if it is missing.
        keep: number of latest checkpoints to keep.
        keep_best: number of further checkpoints to keep, those with the highest scores.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_best: int = 0) -> None:
        self.folder = folder
        self._keep, self._keep_best = keep, keep_best

    def write(
        self, point: RunPosition, score: float | None, save: Callable[[Path], None], replaces: Path | None = None
    ) -> Path:
        """Writes a checkpoint atomically, and removes those that are not kept.

        Args:
            point: of the run; gives the checkpoint its name.
            score: ranks the checkpoints to keep; None within an epoch.
            save: writes the files into the folder that it is given.
            replaces: another checkpoint, which is removed once the new one is stored.

        Returns:
            The folder of the checkpoint.

        Raises:
            OSError: the storage is full or unreachable; earlier checkpoints are unchanged.
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
            description = CheckpointDescription(
                score, {file.name: hash_file(file) for file in sorted(partial.iterdir())}
            )
            (partial / DESCRIPTION).write_text(json.dumps(asdict(description), indent=1), encoding="utf-8")
            if target.exists():  # left by a run that resumed from an earlier one
                target.rename(discarded)
            rename_durably(partial, target)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)  # frees the space on a full disk
            raise
        _remove(discarded)
        if replaces is not None and replaces != target:
            _remove(replaces)
        for old in set(paths.checkpoints_in(self.folder)) - self._kept():
            _remove(old)
        return target

    def recover(self) -> tuple[Path | None, list[str]]:
        """Finds the checkpoint to resume from; moves damaged ones aside and removes incomplete ones.

        Returns:
            The latest undamaged checkpoint, if there is one, and a sentence about each damaged one.
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


def describe(checkpoint: Path) -> CheckpointDescription:
    """The content of checkpoint.json; empty if it cannot be read."""
    try:
        return CheckpointDescription(**from_json((checkpoint / DESCRIPTION).read_bytes()))
    except (OSError, ValueError, TypeError):
        return CheckpointDescription(None, {})


def damage(checkpoint: Path, names: Collection[str] | None = None) -> str | None:
    """How a checkpoint differs from what was written, in a few words; None if it does not.

    Args:
        names: of the files that matter; by default all.
    """
    files = describe(checkpoint).files
    if not files:
        return f"its {DESCRIPTION} is missing or cannot be read"
    for name, expected in files.items():
        if names is not None and name not in names:
            continue
        if Path(name).name != name or not (checkpoint / name).is_file():  # a device would be read for ever
            return f"{name} is missing or no file"
        try:
            if hash_file(checkpoint / name) != expected:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
