"""A default store whose folder was moved or copied: its artifacts are found beside it again.

MLflow stores absolute addresses of artifacts. Those in the store's own folder are rewritten when the folder has another
path than before; the database is backed up first.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sqlite3
import time
import urllib.parse
import urllib.request
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10
ARTIFACTS = "artifacts"
"""Folder of the artifacts of a default store, beside its database."""
ADDRESSES = {
    "experiments": ["artifact_location"],
    "runs": ["artifact_uri"],
    "logged_models": ["artifact_location"],
    "model_versions": ["source", "storage_location"],
}
"""Columns of MLflow's tables with the addresses of artifacts."""
FOLDERS = {"tags": ["value"]}
"""Columns with paths of runs."""


def follow(database: Path) -> Path | None:
    """Rewrites the addresses of artifacts in a store whose folder was moved or copied.

    Args:
        database: file of an SQLite store that has its artifacts beside it.

    Returns:
        The backup of the database; None if nothing was rewritten.

    Raises:
        TimeoutError: another process locks the database for LOCK_SECONDS.
    """
    new, address = database.parent.absolute(), f"{database.absolute().as_uri()}?mode=rw"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS)) as store:
        try:
            found = store.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        except sqlite3.Error as error:
            if "locked" in str(error):  # MLflow would try for minutes
                raise TimeoutError(str(error)) from None
            return None  # new, or damaged: MLflow's errors are explained
        old = [home for (location,) in found if (home := _home(location)) and _was_left(home, new, database.name)]
        if not old:
            return None
        try:
            backup = _back_up(store, database)
            with store:  # one transaction
                for home in old:
                    _rewrite(store, ADDRESSES, home.as_uri(), new.as_uri())
                    _rewrite(store, FOLDERS, str(home), str(new))
        except sqlite3.Error as error:
            _warn(f"{database} was moved from {old[0]}, and its artifacts are looked for there ({error})")
            return None
    logger.warning("%s was moved from %s: its artifacts are found again (backup: %s)", database, old[0], backup.name)
    return backup


@functools.cache
def _warn(sentence: str) -> None:
    """Warns once: a store is opened at each attempt to deliver."""
    logger.warning(sentence)


def _home(location: str) -> Path | None:
    """The folder of a store, given the artifact location of an experiment; None if it is not beside the database."""
    address = urllib.parse.urlsplit(location or "")
    folder = Path(urllib.request.url2pathname(address.path))
    return folder.parent if address.scheme == "file" and folder.name == ARTIFACTS else None


def _was_left(home: Path, new: Path, name: str) -> bool:
    """Whether artifacts in `home` belong to the store that is now in `new`: moved, or copied with its database."""
    with contextlib.suppress(OSError):
        if home == new or home.samefile(new):
            return False
    return not (home / ARTIFACTS).exists() or (home / name).exists()


def _back_up(store: sqlite3.Connection, database: Path) -> Path:
    moment = time.strftime("%Y%m%d-%H%M%S")
    names = (f"{database.stem}-before-move-{moment}-{number}{database.suffix}" for number in itertools.count(1))
    backup = next(one for one in map(database.with_name, names) if not one.exists())
    with contextlib.closing(sqlite3.connect(backup)) as copy:
        store.backup(copy)
    return backup


def _rewrite(store: sqlite3.Connection, columns: dict[str, list[str]], old: str, new: str) -> None:
    """Replaces the folder `old` by `new` at the start of the columns' values."""
    for table, names in columns.items():
        there = {row[1] for row in store.execute(f"PRAGMA table_info({table})")}
        for name in there.intersection(names):
            store.execute(
                f"UPDATE {table} SET {name} = ? || substr({name}, ?) WHERE substr({name}, 1, ?) = ?",
                (new, len(old) + 1, len(old) + 1, f"{old}/"),
            )
