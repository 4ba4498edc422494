"""Disks: one that is soon full, and the order in which files are flushed, renamed and removed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A new disk of its own, mounted at `folder`; the test is skipped where one may not mount."""
    folder.mkdir()
    size = f"size={megabytes}m"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def hanging_disk(folder: Path, image: Path) -> Iterator[Callable[[bool], None]]:
    """A new disk, mounted at `folder`; yields a function that lets its writers wait (True), or continue."""

    def run(*command: object) -> None:
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"needs the right to mount a disk: {done.stderr.strip()}")

    def freeze(hangs: bool) -> None:
        subprocess.run(["fsfreeze", "--freeze" if hangs else "--unfreeze", folder], check=True)

    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(2**25)
    run("mkfs.ext4", "-q", "-F", image)
    run("mount", "-o", "loop", image, folder)
    try:
        yield freeze
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def disk_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Path]]]:
    """What the body does to files and folders, in order: ``flush``, ``rename`` (the new name), ``remove`` (folders)."""
    log: list[tuple[str, Path]] = []
    fsync, replace, rmtree = os.fsync, Path.replace, shutil.rmtree

    def flushes(descriptor: int) -> None:
        fsync(descriptor)
        log.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink()))

    def renames(path: Path, target: Path) -> Path:
        log.append(("rename", target))
        return replace(path, target)

    def removes(path: Path, *arguments: object, **options: object) -> None:
        log.append(("remove", path))
        rmtree(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", flushes)
        patch.setattr(Path, "replace", renames)
        patch.setattr(shutil, "rmtree", removes)
        yield log


def fill(disk: Path) -> Path:
    """Leaves no byte free; returns the file to remove to change that."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(2**16))
    return filler
