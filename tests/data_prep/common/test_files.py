"""Claims about files and folders that are replaced as a whole, whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from data_prep.common.errors import UserError
from data_prep.common.files import (
    MADE_HERE,
    discard,
    locked,
    open_regular,
    partials_in,
    rename_durably,
    replaceable,
    replacing,
    unfinished_folder,
    write_atomically,
)
from tests.helpers.disks import disk_log, small_disk


def test_a_file_is_replaced_by_text_or_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "π")
    assert file.read_text(encoding="utf-8") == "π"
    write_atomically(file, b"\x00", flush=False)
    assert file.read_bytes() == b"\x00"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_keeps_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    file.write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        write_atomically(file, "after")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


def test_no_link_is_followed_and_no_name_guessed(tmp_path: Path) -> None:
    precious, file = tmp_path / "precious", tmp_path / "a.json"
    precious.write_text("mine")
    names = set()
    for content in ("one", "two"):
        with replacing(file) as output:
            [partial] = [entry for entry in tmp_path.iterdir() if entry.suffix == ".partial"]
            names.add(partial.name)
            assert partials_in(tmp_path, "a.json") == partials_in(tmp_path) == [partial]
            output.write(content.encode())
    assert len(names) == 2
    file.unlink()
    file.symlink_to(precious)
    write_atomically(file, "new")
    assert precious.read_text() == "mine" and not file.is_symlink()


def test_only_a_folder_of_its_own_is_taken_for_unfinished_work(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis").touch()
    output, folder = tmp_path / "out", tmp_path / ".out.making"
    for _ in range(2):
        assert unfinished_folder(output, "making") == folder
    (folder / MADE_HERE).unlink()
    assert unfinished_folder(output, "making") == folder, "killed before the mark was there"
    (folder / MADE_HERE).unlink()
    (folder / "thesis").touch()
    with pytest.raises(UserError, match="is not the folder of an interrupted command: rename it"):
        unfinished_folder(output, "making")
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link or a file, and not the folder of an interrupted command"):
        unfinished_folder(output, "making")
    discard(folder)
    discard(folder)
    assert (tmp_path / "precious" / "thesis").exists() and not folder.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a folder away")
def test_a_folder_of_another_user_is_not_taken(tmp_path: Path) -> None:
    folder = unfinished_folder(tmp_path / "out", "making")
    os.chown(folder, 12345, 12345)
    with pytest.raises(UserError, match="is a folder of another user"):
        unfinished_folder(tmp_path / "out", "making")


def test_only_what_can_be_renamed_to_is_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("there")
    assert replaceable(tmp_path / "link") == tmp_path / "there"
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="a is a loop of links: remove it"):
        replaceable(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert replaceable(Path()) == tmp_path, "it may hold the finished result"
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UserError, match="is the current folder, which cannot be replaced: name a folder in it"):
        replaceable(Path("../empty"))


@pytest.mark.parametrize("bind", [False, True])
def test_a_mount_point_is_no_output(tmp_path: Path, bind: bool) -> None:
    mount = tmp_path / "a b"
    with small_disk(mount, 1):
        there = mount
        if bind:
            (there := mount / "bound").mkdir()
            (mount / "source").mkdir()
            subprocess.run(["mount", "--bind", mount / "source", there], check=True)
        with pytest.raises(UserError, match="is the mount point of a disk, which cannot be replaced"):
            replaceable(there)
        if bind:
            subprocess.run(["umount", there], check=True)


def test_a_folder_is_on_disk_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = tmp_path / "partial"
    partial.mkdir()
    (partial / "a").touch()
    (partial / "b").touch()
    with disk_log(monkeypatch) as log:
        rename_durably(partial, tmp_path / "whole")
    assert log == [
        ("flush", partial / "a"),
        ("flush", partial / "b"),
        ("flush", partial),
        ("rename", tmp_path / "whole"),
        ("flush", tmp_path),
    ]


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_file_systems_that_cannot_flush_a_folder_are_used_and_broken_disks_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fails: bool
) -> None:
    fsync = os.fsync

    def refuses_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuses_folders)
    if fails:
        with pytest.raises(OSError):
            write_atomically(tmp_path / "a", "content")
    else:
        write_atomically(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text() == "content"


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="a device, a pipe or a socket"), replacing(tmp_path / "pipe"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe"] and (tmp_path / "pipe").is_fifo()


def test_a_lock_makes_no_file_where_a_link_leads(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises((UserError, OSError)), locked(tmp_path / "lock", "busy"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_no_regular_file_is_refused_by_its_name_and_left_closed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    opened = sorted(Path("/proc/self/fd").iterdir())
    for path, kind in ((tmp_path, IsADirectoryError), (tmp_path / "pipe", OSError)):
        with pytest.raises(kind) as refused:
            open_regular(path)
        assert refused.value.filename == str(path)
    assert sorted(Path("/proc/self/fd").iterdir()) == opened
