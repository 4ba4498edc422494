"""Stages a prepared data set on a node's local disk, from a folder, a network file system or object storage.

The data set gets its name FOLDER/NAME-DIGEST (twelve digits of its digest) when it is complete and every hash agrees;
until then it is in a hidden folder beside it. One process of a node copies, all others wait for it. After a process is
killed, the next one keeps complete files, and resumes the others where they end.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.files import (
    BLOCK,
    MADE_HERE,
    discard,
    explain_os_errors,
    hash_file,
    locked,
    require_space,
    sync_folder,
    unfinished_folder,
    unfinished_name,
    write_atomically,
)
from data_prep.format.manifest import (
    LARGEST_MANIFEST,
    MANIFEST_FILE,
    File,
    Manifest,
    load_manifest,
    parse_manifest,
    require_consistent,
)
from data_prep.maintain.remote_reader import RemoteDataset

FILES = 4
"""Number of files copied at the same time, each by several requests: see :mod:`data_prep.maintain.remote_reader`."""

Advance = Callable[[int], None]


def stage(
    location: str,
    folder: Path,
    *,
    check: bool = False,
    advance: Advance = lambda count: None,
    on_copy: Callable[[int], None] = lambda total: None,
    on_wait: Callable[[Path], None] = lambda target: None,
) -> Path:
    """Copies a data set to this node's disk unless it is there; any number of processes may call it concurrently.

    Args:
        location: of the prepared data set: a folder, or an address such as s3://bucket/imagenet.
        folder: on this node's disk, for staged data sets.
        check: hash a data set that is already there, and replace files that changed.
        advance: called with numbers of bytes that are in place, from several threads; negative for a damaged file that
            is copied again.
        on_copy: called with the number of bytes of the data set, before they are copied.
        on_wait: called with the path of the result before waiting for another process that copies it.

    Returns:
        The folder of the staged data set.

    Raises:
        UserError: the data set is missing, incomplete, damaged or unreachable, or the disk is full or fails. Copied
            bytes are kept, and the next call resumes.
    """
    if not storage.is_remote(location) and folder.resolve().is_relative_to(Path(location).resolve()):
        raise UserError(f"{folder} lies in the data set {location} itself: name a folder outside of it")
    remote = RemoteDataset(location)
    content = remote.read(MANIFEST_FILE, LARGEST_MANIFEST)
    manifest = parse_manifest(content, remote.address(MANIFEST_FILE))
    require_consistent(manifest, remote.address(MANIFEST_FILE))
    target = folder / folder_name(manifest)
    if not check and _is_whole(target, manifest):
        return target
    with explain_os_errors(target):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{target.name}.lock", busy="", wait=lambda: on_wait(target)):
            if not _is_whole(target, manifest, check):
                on_copy(sum(file.bytes for file in _files(manifest)))
                _Staging(remote, manifest, content, target, advance).run()
    return target


def folder_name(manifest: Manifest) -> str:
    """The name of a staged data set: the name in its manifest, and the beginning of its digest."""
    name = re.sub(r"[^\w.-]+", "-", manifest.name).strip(".-") or "dataset"
    return f"{name}-{manifest.digest[:12]}"


def _is_whole(target: Path, manifest: Manifest, check: bool = False) -> bool:
    """Whether the data set is complete: every file has its size and, if `check`, its hash.

    Files whose hash differs are removed. The files may differ from those of the source: a merged copy counts, too.
    """
    if not target.exists() and not target.is_symlink():
        return False
    if target.is_symlink() or not target.is_dir() or target.stat().st_uid not in _trusted_owners(target.parent):
        raise UserError(
            f"{target} is a link, a file or a folder of another user, which may change what is trained on: remove it, "
            "or stage to a folder of your own"
        )
    try:
        staged = load_manifest(target)
    except UserError:
        return False
    whole = staged.digest == manifest.digest
    for file in _files(staged) if check else ():
        if hash_file(target / file.file) != file.sha256:
            (target / file.file).unlink()
            whole = False
    return whole


def _trusted_owners(folder: Path) -> set[int]:
    """Of staged data sets in `folder`: this user, the administrator, and the folder's owner, as others may write into
    what is shared."""
    return {os.geteuid(), 0, folder.stat().st_uid}


def _files(manifest: Manifest) -> list[File]:
    return [file for split in manifest.splits.values() for file in split.files]


class _StoppedError(Exception):
    """Another file failed, or the user interrupted the command."""


class _Staging:
    """Copies one data set; its process holds the lock."""

    def __init__(
        self, remote: RemoteDataset, manifest: Manifest, content: bytes, target: Path, advance: Advance
    ) -> None:
        self.remote = remote
        self.files = _files(manifest)
        self.content = content
        self.target = target
        self.partial = unfinished_name(target, "staging")
        self.advance = advance
        self.stop = threading.Event()

    def run(self) -> None:
        if self.target.exists():  # incomplete or damaged: it is repaired under the hidden name
            if any(self.target.iterdir()) and not (self.target / MANIFEST_FILE).exists():
                raise UserError(f"{self.target} is not a staged data set: rename it, or remove it")
            discard(unfinished_folder(self.target, "staging"))
            self.target.rename(self.partial)
            (self.partial / MADE_HERE).touch()
        unfinished_folder(self.target, "staging")
        self._remove_leftovers()
        missing = sum(file.bytes - self._present(file) for file in self.files)
        require_space(self.target.parent, missing, "or stage to another disk")
        with ThreadPoolExecutor(FILES, "stage") as pool:
            tasks = [pool.submit(self._fetch, file) for file in self.files]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BaseException:
                self.stop.set()
                for task in tasks:
                    task.cancel()
                raise
        write_atomically(self.partial / MANIFEST_FILE, self.content)
        self.partial.rename(self.target)
        sync_folder(self.target.parent)
        (self.target / MADE_HERE).unlink(missing_ok=True)

    def _growing(self, file: File) -> Path:
        """Path of a file while it is incomplete."""
        path = self.partial / file.file
        return path.with_name(f".{path.name}.partial")

    def _present(self, file: File) -> int:
        """Number of bytes of a file that are present, before their hash is checked."""
        for path in (self.partial / file.file, self._growing(file)):
            if path.exists():
                return min(path.stat().st_size, file.bytes)
        return 0

    def _remove_leftovers(self) -> None:
        """Removes files that do not belong to the data set, as after a merge of the source, or have a wrong size."""
        complete = {self.partial / file.file: file.bytes for file in self.files}
        growing = {self._growing(file) for file in self.files}
        for path in [path for path in self.partial.rglob("*") if not path.is_dir() or path.is_symlink()]:
            foreign = path.is_symlink() or (path not in growing and complete.get(path) != path.stat().st_size)
            if foreign and path.name != MADE_HERE:
                path.unlink()

    def _fetch(self, file: File) -> None:
        """Copies a file, and renames it to its name when its hash agrees."""
        final, growing = self.partial / file.file, self._growing(file)
        if final.exists():  # since an earlier command, or since it was found damaged
            if hash_file(final, self._advance_or_stop) == file.sha256:
                return
            final.unlink()
            self.advance(-file.bytes)
        final.parent.mkdir(parents=True, exist_ok=True)
        started_at, found = self._append(file, growing)
        if found != file.sha256 and started_at > 0:  # a power failure may have damaged the bytes that were there
            growing.unlink()
            self.advance(-file.bytes)
            _, found = self._append(file, growing)
        if found != file.sha256:
            growing.unlink()
            raise UserError(
                f"{self.remote.address(file.file)} is not what its manifest describes, its SHA-256 is another one: "
                "prepare the data set again, or copy it again from an intact copy"
            )
        growing.replace(final)
        sync_folder(final.parent)

    def _append(self, file: File, growing: Path) -> tuple[int, str]:
        """Completes a file; returns its size before, in bytes, and the hash of all of it."""
        digest = hashlib.sha256()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(growing, flags, 0o666), "a+b", buffering=0) as output:
            start = min(output.seek(0, os.SEEK_END), file.bytes)
            output.truncate(start)
            output.seek(0)
            while block := output.read(BLOCK):
                self._take(digest, block)
            for block in self.remote.blocks(file.file, start, file.bytes):
                remaining = memoryview(block)
                while remaining:  # a disk that is nearly full may write a part
                    remaining = remaining[output.write(remaining) :]
                self._take(digest, block)
            os.fsync(output.fileno())
        return start, digest.hexdigest()

    def _take(self, digest: hashlib._Hash, block: bytes) -> None:
        digest.update(block)
        self._advance_or_stop(len(block))

    def _advance_or_stop(self, count: int) -> None:
        if self.stop.is_set():
            raise _StoppedError
        self.advance(count)
