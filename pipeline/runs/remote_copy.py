"""Copies of a run in object storage, or on any other file system of pyarrow, made in the background.

RUN/run.yaml and RUN/checkpoints are copied as they are on disk. checkpoint.json is copied last, so a copy with that
file is complete. A run whose folder is missing, or on another machine, resumes from the copies.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.files import rename_durably, write_atomically
from pipeline.runs import paths
from pipeline.runs.checkpoint_store import PARTIAL, damage
from pipeline.runs.paths import DESCRIPTION

_Problem = (OSError, pa.ArrowException)
_DISK = fs.LocalFileSystem()


class Uploads:
    """Keeps the copies of one run up to date, in the process that writes its checkpoints.

    Args:
        location: of the copies, such as s3://bucket/runs/NAME.
        run: folder of the run.
        on_problem: called with a sentence when the storage is unreachable; the next checkpoint tries again.
    """

    def __init__(self, location: str, run: Path, on_problem: Callable[[str], None]) -> None:
        self._location, self._run, self._on_problem = location, run, on_problem
        self._pool = ThreadPoolExecutor(1, "upload")
        self._changed = threading.Event()

    def follow(self) -> None:
        """Copies new checkpoints in the background, and removes the copies of those that are no longer kept."""
        if not self._changed.is_set():  # otherwise the call that is already queued copies this, too
            self._changed.set()
            self._pool.submit(self._synchronize)

    def close(self) -> None:
        """Waits until everything is copied."""
        self._pool.shutdown(wait=True)

    def _synchronize(self) -> None:
        self._changed.clear()
        try:
            filesystem, root = storage.resolve(self._location)
            folder = f"{root}/{paths.CHECKPOINTS}"
            filesystem.create_dir(root, recursive=True)
            _copy(self._run / paths.IDENTITY, filesystem, f"{root}/{paths.IDENTITY}")
            kept = paths.stored_checkpoints(self._run)
            there = _descriptions(filesystem, folder)
            for checkpoint in reversed(kept):  # the latest first: the time until a machine is gone may be short
                if there.get(checkpoint.name) != (checkpoint / DESCRIPTION).read_bytes():
                    _copy_folder(checkpoint, filesystem, f"{folder}/{checkpoint.name}")
            names = {checkpoint.name for checkpoint in kept}
            for name in there.keys() - names:
                if there[name] is None or (kept and name < kept[-1].name):  # a later one would be a loss
                    filesystem.delete_dir(f"{folder}/{name}")
        except FileNotFoundError:
            pass  # a checkpoint was replaced meanwhile, and follow() called again
        except (*_Problem, UserError) as error:
            where, reason = storage.redact(self._location), storage.first_line(error)
            self._on_problem(f"checkpoint.upload: {where} is unreachable ({reason}): the next checkpoint tries again")


def checkpoints_at(location: str) -> set[str]:
    """Names of the complete copies of a run's checkpoints.

    Raises:
        OSError: the storage is unreachable.
    """
    filesystem, root = storage.resolve(location)
    found = _descriptions(filesystem, f"{root}/{paths.CHECKPOINTS}")
    return {name for name, description in found.items() if description is not None}


def _descriptions(filesystem: fs.FileSystem, folder: str) -> dict[str, bytes | None]:
    """Name of each copy of a checkpoint → its checkpoint.json; None if it has none, because it is incomplete."""
    found = filesystem.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    inside = [info.path.removeprefix(f"{folder}/").split("/") for info in found]
    descriptions: dict[str, bytes | None] = {parts[0]: None for parts in inside}
    for name in [parts[0] for parts in inside if parts[1:] == [DESCRIPTION]]:
        with filesystem.open_input_stream(f"{folder}/{name}/{DESCRIPTION}") as stream:
            descriptions[name] = stream.read()
    return descriptions


def fetch_identity(location: str, run: Path) -> None:
    """Copies run.yaml into a run's folder that has none, if the location has one.

    Raises:
        UserError: the storage is unreachable, which is found out here, before a run starts.
    """
    try:
        filesystem, root = storage.resolve(location)
        stored = filesystem.get_file_info(f"{root}/{paths.IDENTITY}").type == fs.FileType.File
        if stored and not (run / paths.IDENTITY).exists():
            with filesystem.open_input_stream(f"{root}/{paths.IDENTITY}") as stream:
                write_atomically(run / paths.IDENTITY, stream.read())
    except _Problem as error:
        raise _away(location, error) from None


def fetch_newest(location: str, run: Path) -> str | None:
    """Fetches the latest undamaged copy of a checkpoint into a run's folder, unless the folder has one as late.

    Args:
        run: folder of the run; its own checkpoints are undamaged, see :meth:`Checkpoints.recover`.

    Returns:
        The name of the checkpoint; None if nothing was fetched.

    Raises:
        UserError: the storage is unreachable.
    """
    own = paths.stored_checkpoints(run)
    try:
        for name in sorted(checkpoints_at(location), reverse=True):
            if own and name <= own[-1].name:
                return None
            if _fetch_checkpoint(location, name, run / paths.CHECKPOINTS):
                return name
    except _Problem as error:
        raise _away(location, error) from None
    return None


def _fetch_checkpoint(location: str, name: str, folder: Path) -> bool:
    """Fetches a checkpoint into a folder; returns False, and leaves nothing, if the copy is damaged."""
    filesystem, root = storage.resolve(location)
    partial = folder / f"{PARTIAL}{name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for info in filesystem.get_file_info(fs.FileSelector(f"{root}/{paths.CHECKPOINTS}/{name}")):
        _fetch(filesystem, info.path, partial / info.base_name)
    if damage(partial):
        shutil.rmtree(partial)
        return False
    rename_durably(partial, folder / name)
    return True


def _copy_folder(folder: Path, filesystem: fs.FileSystem, target: str) -> None:
    """Copies a checkpoint; a copy that is there already is incomplete from the first moment on to the last."""
    with suppress(FileNotFoundError):
        filesystem.delete_file(f"{target}/{DESCRIPTION}")
    filesystem.create_dir(target, recursive=True)
    for file in sorted(folder.iterdir(), key=lambda file: (file.name == DESCRIPTION, file.name)):
        _copy(file, filesystem, f"{target}/{file.name}")


def _copy(file: Path, filesystem: fs.FileSystem, target: str) -> None:
    fs.copy_files(str(file.absolute()), target, _DISK, filesystem)


def _fetch(filesystem: fs.FileSystem, source: str, file: Path) -> None:
    fs.copy_files(source, str(file.absolute()), filesystem, _DISK)


def _away(location: str, error: Exception) -> UserError:
    where = storage.redact(location)
    return UserError(
        f"checkpoint.upload: {where} is unreachable ({storage.first_line(error)}): check it, or unset checkpoint.upload"
    )


def location_of(upload: str, run: Path) -> str:
    """Location of the copies of a run, given the setting checkpoint.upload and the run's folder."""
    return storage.join(upload, run.name)
