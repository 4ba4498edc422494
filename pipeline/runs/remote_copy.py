"""Copies of a run in object storage, or on any other file system that pyarrow knows, made in the background.

RUN/run.yaml and RUN/checkpoints are copied as they are on disk; checkpoint.json comes last, so that a checkpoint that
has one is whole. A run whose folder is gone, or is on another machine, goes on from there.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.files import rename_durably, write_atomically
from pipeline.runs import paths
from pipeline.runs.checkpoint_store import DESCRIPTION, PARTIAL, damage

_Problem = (OSError, pa.ArrowException)
_DISK = fs.LocalFileSystem()


class Uploads:
    """The copies of one run, kept by the one process that writes its checkpoints.

    Args:
        location: of the run, such as s3://bucket/runs/NAME.
        run: its folder.
        say: told, in a sentence, when the storage does not answer; the next checkpoint tries again.
    """

    def __init__(self, location: str, run: Path, say: Callable[[str], None]) -> None:
        self._location, self._run, self._say = location, run, say
        self._pool = ThreadPoolExecutor(1, "upload")
        self._changed = threading.Event()

    def follow(self) -> None:
        """Brings the copies up to what is on disk now, in the background; those not kept any more are removed."""
        if not self._changed.is_set():  # else what is waiting for its turn will see this, too
            self._changed.set()
            self._pool.submit(self._synchronize)

    def close(self) -> None:
        """Waits until all is copied."""
        self._pool.shutdown(wait=True)

    def _synchronize(self) -> None:
        self._changed.clear()
        try:
            filesystem, root = storage.resolve(self._location)
            filesystem.create_dir(root, recursive=True)
            _copy(self._run / paths.IDENTITY, filesystem, f"{root}/{paths.IDENTITY}")
            kept = paths.stored_checkpoints(self._run)
            there = checkpoints_at(self._location)
            for checkpoint in kept:
                if checkpoint.name not in there:
                    _copy_folder(checkpoint, filesystem, f"{root}/{paths.CHECKPOINTS}/{checkpoint.name}")
            for name in there - {checkpoint.name for checkpoint in kept}:
                filesystem.delete_dir(f"{root}/{paths.CHECKPOINTS}/{name}")
        except FileNotFoundError:
            pass  # a checkpoint that was replaced meanwhile: whoever replaced it has asked for the next turn
        except (*_Problem, UserError) as error:
            where = storage.redact(self._location)
            self._say(
                f"checkpoint.upload: {where} does not answer ({storage.first_line(error)}); the next one tries again"
            )


def checkpoints_at(location: str) -> set[str]:
    """Names of the checkpoints of a run that are whole there.

    Raises:
        OSError: the storage does not answer.
    """
    filesystem, root = storage.resolve(location)
    selector = fs.FileSelector(f"{root}/{paths.CHECKPOINTS}", recursive=True, allow_not_found=True)
    found = filesystem.get_file_info(selector)
    return {Path(info.path).parent.name for info in found if info.base_name == DESCRIPTION}


def fetch_identity(location: str, run: Path) -> None:
    """Puts run.yaml into a run's folder that has none, if there is one at the location.

    Raises:
        UserError: the storage does not answer.
    """
    if (run / paths.IDENTITY).exists():
        return
    try:
        filesystem, root = storage.resolve(location)
        if filesystem.get_file_info(f"{root}/{paths.IDENTITY}").type == fs.FileType.File:
            with filesystem.open_input_stream(f"{root}/{paths.IDENTITY}") as stream:
                write_atomically(run / paths.IDENTITY, stream.read())
    except _Problem as error:
        raise _away(location, error) from None


def fetch_newest(location: str, run: Path) -> str | None:
    """Brings the newest checkpoint that is there into a run's folder, if the folder has none that is as new.

    Returns:
        Its name; None if nothing was fetched.

    Raises:
        UserError: the storage does not answer.
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
    """Brings a checkpoint into a folder; whether it is what was written."""
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
        f"checkpoint.upload: {where} does not answer ({storage.first_line(error)}): mend it, or leave it out"
    )


def location_of(upload: str, run: Path) -> str:
    """Where the copies of a run are."""
    return storage.join(upload, run.name)
