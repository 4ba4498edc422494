"""Deletes runs and searches: their folders, and their runs in MLflow."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import UserError, first_line
from data_prep.common.files import discard, explain_os_errors, unfinished_name
from pipeline.config.schema import Settings
from pipeline.config.settings_io import parse_yaml, resolve
from pipeline.run_list import catalog
from pipeline.run_list.catalog import Listed
from pipeline.runs import claimed_folder, paths, run_folder

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_store.run import TrackedRuns

DELETING = "deleting"
"""Suffix of the hidden name to which a folder is renamed before it is removed."""


@dataclass(frozen=True)
class Deletion:
    """What will be deleted."""

    folders: Sequence[Path]
    tracked: Sequence[TrackedRuns]
    bytes: int
    """Size of the folders, and of the artifacts on this machine."""


@contextmanager
def prepared(storage: Path, names: Sequence[str], keep_tracked: bool = False) -> Iterator[Deletion]:
    """Finds and locks what belongs to runs and searches, so that no process resumes one before it is deleted.

    Args:
        names: of the runs and searches.
        keep_tracked: leave them in MLflow.

    Raises:
        UserError: there is no such run; a process works on it; it is a trial, which its search owns; it is a link; or
            its store is unreachable.
    """
    found = catalog.find(storage, names)
    for one in found:
        _check(one)
    with ExitStack() as locks:
        for one in found:
            lock = paths.SEARCH_LOCK if one.kind == "search" else paths.LOCK
            busy = functools.partial(_busy, one)
            locks.enter_context(claimed_folder.held(one.path, lock, setting="--storage", busy=busy))
        tracked = [] if keep_tracked else [_tracked(storage, one) for one in found]
        folders = [one.path for one in found]
        yield Deletion(folders, tracked, sum(map(_size, folders)) + sum(one.bytes for one in tracked))


def delete(chosen: Deletion) -> None:
    """Deletes runs in MLflow, then their folders. If it is interrupted, the next one removes what is left.

    Raises:
        UserError: a store or a folder cannot be written.
    """
    for tracked in chosen.tracked:
        tracked.delete()
    for folder in chosen.folders:
        with explain_os_errors(folder):
            for leftover in folder.parent.glob(f".*.{DELETING}"):
                discard(leftover)
            aside = unfinished_name(folder, DELETING)
            folder.rename(aside)
            discard(aside)


def _check(one: Listed) -> None:
    if one.kind == "trial":
        search = one.name.partition("/")[0]
        raise UserError(f"{one.name} is a trial of search {search}, whose table names it: delete the search, {search}")
    if one.path.is_symlink():
        raise UserError(f"{one.path} is a link to {one.path.resolve()}: remove the link, or delete that folder")
    for trial in one.trials:
        if claimed_folder.is_claimed(trial.path, paths.LOCK):
            raise UserError(_busy(trial))


def _busy(one: Listed) -> str:
    who = "another process" if one.kind == "search" else run_folder.owner(one.path)
    return f"{one.kind} {one.path} is at work in {who}: stop that (Ctrl-C), then delete it"


def _tracked(storage: Path, one: Listed) -> TrackedRuns:
    """What MLflow has of a run, or of a search and its trials."""
    from pipeline.tracking.mlflow_store import run
    from pipeline.tracking.mlflow_store.store import default_store, store_of_run

    settings, identities = _identified(one)
    if settings is None:
        return run.TrackedRuns(default_store(storage))
    return run.find_runs(store_of_run(settings, storage), identities)


def _identified(one: Listed) -> tuple[Settings | None, list[str]]:
    """The settings of a run, or those that the trials of a search share, and what identifies it and its trials."""
    if one.kind == "run":
        return (one.identity.settings, [one.identity.id]) if one.identity else (None, [])
    file = one.path / paths.SEARCH
    try:
        content: dict[str, Any] = parse_yaml(file.read_text(encoding="utf-8"))
        settings = resolve(Settings, content["settings"]["train"], str(file), stored=True)
        return settings, [content["id"], *(trial.identity.id for trial in one.trials if trial.identity)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({first_line(error)}), so that its runs in MLflow are unknown: --keep-tracked"
        ) from None


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; links are not followed."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_symlink() or file.is_file())
