"""A prepared data set onto a node's own disk, once, from a folder, a network file system or object storage.

The data set gets the name FOLDER/NAME-DIGEST (twelve digits of its digest) when it is complete and every hash agrees;
until then it grows in a hidden folder beside. One process of a node copies, all others wait for it. A process that is
killed leaves what it has: files that are complete are kept, the others continue where they end.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from data_prep.common.errors import UserError
from data_prep.common.files import (
    BLOCK,
    explain_os_errors,
    hash_file,
    locked,
    require_space,
    sync_folder,
    write_atomically,
)
from data_prep.format.manifest import MANIFEST_FILE, File, Manifest, load_manifest, parse_manifest
from data_prep.maintain.remote_reader import RemoteDataset

FILES = 4
"""Files that are copied at the same time, each by several requests: see :mod:`data_prep.maintain.remote_reader`."""

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
    """Brings a data set to this node's disk, or finds it there; any number of processes may ask for it at once.

    Args:
        location: of the prepared data set: a folder, or an address such as s3://bucket/imagenet.
        folder: on this node's disk, for staged data sets.
        check: hashes a data set that is already there, and copies anew what changed.
        advance: called with numbers of bytes that are in place, from several threads; a number is negative where a file
            has to be copied once more.
        copying: called with the data set's bytes, before they are copied.
        waiting: called with the result's path, if another process is copying, before waiting for it.

    Returns:
        The folder of the staged data set.

    Raises:
        UserError: there is no data set, one of its files is missing or not what its manifest says, it cannot be
            reached, or the disk is too small or refuses. What was copied stays, and the next call continues.
    """
    remote = RemoteDataset(location)
    content = remote.read(MANIFEST_FILE)
    manifest = parse_manifest(content, remote.address(MANIFEST_FILE))
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
    """The name of a staged data set: its own, and the beginning of its digest."""
    name = re.sub(r"[^\w.-]+", "-", manifest.name).strip(".-") or "dataset"
    return f"{name}-{manifest.digest[:12]}"


def _is_whole(target: Path, manifest: Manifest, check: bool = False) -> bool:
    """Whether the data set is in place: every file has its size and, if `check`, its hash.

    Files whose hash differs are removed. Its files need not be those of the source: a merged copy is the same data set.
    """
    if not target.exists():
        return False
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


def _files(manifest: Manifest) -> list[File]:
    return [file for split in manifest.splits.values() for file in split.files]


class _StoppedError(Exception):
    """Another file failed, or the user interrupts."""


class _Staging:
    """One data set on its way; its process holds the lock."""

    def __init__(
        self, remote: RemoteDataset, manifest: Manifest, content: bytes, target: Path, advance: Advance
    ) -> None:
        self.remote = remote
        self.files = _files(manifest)
        self.content = content
        self.target = target
        self.partial = target.with_name(f".{target.name}.partial")
        self.advance = advance
        self.stop = threading.Event()

    def run(self) -> None:
        if self.target.exists():  # but not whole: it is mended where nobody takes it for finished
            shutil.rmtree(self.partial, ignore_errors=True)
            self.target.rename(self.partial)
        self.partial.mkdir(exist_ok=True)
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

    def _growing(self, file: File) -> Path:
        """Where a file is while it is incomplete."""
        path = self.partial / file.file
        return path.with_name(f".{path.name}.partial")

    def _present(self, file: File) -> int:
        """Bytes of a file that are in place, or may turn out to be."""
        for path in (self.partial / file.file, self._growing(file)):
            if path.exists():
                return min(path.stat().st_size, file.bytes)
        return 0

    def _remove_leftovers(self) -> None:
        """Removes what is no part of the data set: it was staged from shards before it was merged, or was damaged."""
        complete = {self.partial / file.file: file.bytes for file in self.files}
        growing = {self._growing(file) for file in self.files}
        for path in [path for path in self.partial.rglob("*") if path.is_file()]:
            if path not in growing and complete.get(path) != path.stat().st_size:
                path.unlink()

    def _fetch(self, file: File) -> None:
        """Copies a file, which gets its name when its hash agrees."""
        final, growing = self.partial / file.file, self._growing(file)
        if final.exists():
            self.advance(file.bytes)
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        started_at, found = self._append(file, growing)
        if found != file.sha256 and started_at > 0:  # a power cut may have damaged what was there
            growing.unlink()
            self.advance(-file.bytes)
            _, found = self._append(file, growing)
        if found != file.sha256:
            growing.unlink()
            raise UserError(
                f"{self.remote.address(file.file)} is not what its manifest describes, its SHA-256 is another one: "
                "prepare the data set again, or copy it again from where it is whole"
            )
        growing.replace(final)
        sync_folder(final.parent)

    def _append(self, file: File, growing: Path) -> tuple[int, str]:
        """Completes a file; returns where it had ended before, and the hash of all of it."""
        digest = hashlib.sha256()
        with growing.open("a+b", buffering=0) as output:
            start = min(output.seek(0, os.SEEK_END), file.bytes)
            output.truncate(start)
            output.seek(0)
            while block := output.read(BLOCK):
                self._take(digest, block)
            for block in self.remote.blocks(file.file, start, file.bytes):
                remaining = memoryview(block)
                while remaining:  # a disk that is nearly full may take a part
                    remaining = remaining[output.write(remaining) :]
                self._take(digest, block)
            os.fsync(output.fileno())
        return start, digest.hexdigest()

    def _take(self, digest: hashlib._Hash, block: bytes) -> None:
        if self.stop.is_set():
            raise _StoppedError
        digest.update(block)
        self.advance(len(block))
