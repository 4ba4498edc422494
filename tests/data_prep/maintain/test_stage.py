"""Staging: a data set is copied to a node's disk once and completely, by several processes and after failures."""

from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.format.manifest import MANIFEST_FILE, load_manifest
from data_prep.maintain import remote_reader
from data_prep.maintain.merge import merge
from data_prep.maintain.stage import folder_name, stage
from tests.helpers.checkout import ROOT
from tests.helpers.datasets import content, write_dataset
from tests.helpers.disks import fill, small_disk
from tests.helpers.object_storage import object_storage

SHARDS = {"train-00000.beton", "train-00001.beton", "train-00002.beton", "validation-00000.beton"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", {"train": (9, 6, 7), "validation": (4,)})
    return tmp_path / "set"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.beton"))


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        [byte] = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
from data_prep.maintain import remote_reader
from data_prep.maintain.stage import folder_name, stage
remote_reader.BLOCK = 2**18
location, folder, kill_after, others = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
copied, lock = 0, threading.Lock()
def advance(count):
    global copied
    with lock:
        copied += count
        if copied >= kill_after:
            while len(list(folder.parent.glob("waiting-*"))) < others:
                time.sleep(0.01)
            if kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
def on_wait(target):
    (folder.parent / f"waiting-{os.getpid()}").touch()
    print("waiting", target.name, flush=True)
target = stage(location, folder, advance=advance, on_wait=on_wait)
print("copied", copied, target)
"""


def start(location: Path, folder: Path, kill_after: int = 0, others: int = 0) -> subprocess.Popen[str]:
    """Stages in a process of its own, which kills itself after so many bytes.

    Args:
        others: processes that it waits for there; each of them makes a file waiting-* beside `folder`.
    """
    arguments = [str(location), str(folder), str(kill_after), str(others)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_data_set_is_copied_once_and_found_again(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    manifest = load_manifest(folder)
    copied: list[int] = []
    announced: list[int] = []
    target = stage(str(folder), disk, advance=copied.append, on_copy=announced.append)
    assert announced == [bytes_of(folder)]
    assert target == disk / f"noise-{manifest.digest[:12]}"
    assert sum(copied) == bytes_of(folder)
    assert names(disk) == {target.name} and names(target) == {MANIFEST_FILE, *SHARDS}
    assert load_manifest(target) == manifest and content(target) == content(folder)
    copied.clear()
    assert stage(str(folder), disk, advance=copied.append) == target
    merge(folder)
    assert stage(f"file://{folder}", disk, check=True, advance=copied.append) == target  # merging leaves the digest
    assert copied == []


def test_a_staged_copy_that_was_damaged_is_repaired(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    target = stage(str(folder), disk)
    copied: list[int] = []
    flip(target / "train-00001.beton", 2**21 + 100)
    assert stage(str(folder), disk, advance=copied.append) == target and copied == []
    assert stage(str(folder), disk, check=True, advance=copied.append) == target
    (target / "train-00000.beton").unlink()
    (target / "validation-00000.beton").write_bytes(b"short")
    assert stage(str(folder), disk) == target
    (target / MANIFEST_FILE).write_text("{")
    assert stage(str(folder), disk) == target
    assert content(target) == content(folder) and names(disk) == {target.name}
    assert names(target) == {MANIFEST_FILE, *SHARDS}


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "longer"])
def test_a_damaged_source_is_named_and_nothing_gets_the_final_name(folder: Path, tmp_path: Path, damage: str) -> None:
    disk, shard = tmp_path / "disk", folder / "train-00001.beton"
    whole = shard.read_bytes()
    message = {
        "flipped": "is not what its manifest describes, its SHA-256 is another one: prepare the data set again",
        "cut": "has .* bytes instead of",
        "missing": "is missing",
        "longer": "has .* bytes instead of",
    }[damage]
    if damage == "flipped":
        flip(shard, len(whole) // 2)
    elif damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(whole[:-1] if damage == "cut" else whole + b"x")
    for _ in range(2):
        with pytest.raises(UserError, match=rf"{shard}.* {message}"):
            stage(str(folder), disk)
        assert all(name.startswith(".") for name in names(disk))
    shard.write_bytes(whole)
    assert content(stage(str(folder), disk)) == content(folder)
    assert all(not name.startswith(".") for name in names(disk))


def test_a_process_that_is_killed_leaves_what_it_has_and_the_next_one_resumes(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    total = bytes_of(folder)
    for kill_after in (1, total // 3, total * 2 // 3):
        with start(folder, disk, kill_after) as process:
            assert process.wait() == -signal.SIGKILL
        assert all(name.startswith(".") for name in names(disk))
    [partial] = disk.glob(".*.staging")
    growing = [path for path in partial.rglob("*") if path.is_file()]
    present = sum(path.stat().st_size for path in growing)
    assert total // 3 <= present < total
    damaged = max((path for path in growing if path.name.endswith(".partial")), key=lambda path: path.stat().st_size)
    flip(damaged, damaged.stat().st_size // 2)  # as a power cut may
    (partial / ".old.beton.partial").write_bytes(b"of another copy")
    copied: list[int] = []
    target = stage(str(folder), disk, advance=copied.append)
    assert content(target) == content(folder) and sum(copied) == total
    assert names(disk) == {target.name} and names(target) == {MANIFEST_FILE, *SHARDS}


def test_what_was_copied_is_not_copied_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    with start(folder, disk, bytes_of(folder) // 2) as process:
        process.wait()
    fetched: list[int] = []
    blocks = remote_reader.RemoteDataset.blocks

    def watched(self: remote_reader.RemoteDataset, name: str, begin: int, end: int) -> object:
        fetched.append(end - begin)
        return blocks(self, name, begin, end)

    monkeypatch.setattr(remote_reader.RemoteDataset, "blocks", watched)
    [partial] = disk.glob(".*.staging")
    present = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    assert content(stage(str(folder), disk)) == content(folder)
    assert sum(fetched) == bytes_of(folder) - present


def test_of_two_at_once_one_copies_and_the_other_waits_for_it(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    processes = [start(folder, disk, others=2) for _ in range(3)]
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        outputs.append(output.splitlines())
    copied = sorted(int(lines[-1].split()[1]) for lines in outputs)
    assert copied == [0, 0, bytes_of(folder)]
    assert [lines[0].split()[0] for lines in outputs].count("waiting") == 2
    assert len({lines[-1].split()[2] for lines in outputs}) == 1
    assert content(Path(outputs[0][-1].split()[2])) == content(folder)


@pytest.mark.slow
def test_a_process_that_waits_for_one_that_is_killed_takes_over(folder: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with start(folder, disk, kill_after=bytes_of(folder) // 2, others=1) as first:
        while not list(disk.glob(".*.staging/*.beton*")):
            assert first.poll() is None
        waited: list[Path] = []

        def on_wait(target: Path) -> None:
            waited.append(target)
            (tmp_path / "waiting-here").touch()

        target = stage(str(folder), disk, on_wait=on_wait)
        assert first.wait() == -signal.SIGKILL
    assert waited == [target] and content(target) == content(folder)
    assert names(disk) == {target.name}


def test_threads_of_one_process_stage_once_too(folder: Path, tmp_path: Path) -> None:
    copied: list[int] = []
    threads = [
        threading.Thread(target=stage, args=(str(folder), tmp_path / "disk"), kwargs={"advance": copied.append})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(copied) == bytes_of(folder)


def test_a_full_disk_is_reported_before_and_while_copying_and_the_next_call_resumes(
    folder: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", 20) as disk:
        with pytest.raises(
            UserError, match=r"small has .* free, and 2.* are needed: free disk space, or stage to another disk"
        ):
            stage(str(folder), disk)
        assert not any(disk.glob("noise-*"))
    with small_disk(tmp_path / "larger", 28) as disk:
        fillers: list[Path] = []

        def fill_up(count: int) -> None:
            if not fillers:
                fillers.append(disk / "filler")
                fill(disk)

        with pytest.raises(
            UserError,
            match=r"no space is left on the disk of .*noise-\w+: free disk space, "
            r"then rerun the same command to resume",
        ):
            stage(str(folder), disk, advance=fill_up)
        assert not any(disk.glob("noise-*"))
        fillers[0].unlink()
        assert content(stage(str(folder), disk)) == content(folder)


@pytest.mark.slow
@pytest.mark.parametrize("failures", [0, 2, 5])
def test_object_storage_that_fails_at_first_then_answers_is_staged(folder: Path, tmp_path: Path, failures: int) -> None:
    with object_storage(failures) as bucket:
        bucket.upload(folder, "prepared/set")
        target = stage(bucket.location("prepared/set"), tmp_path / "disk")
        assert content(target) == content(folder)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_read_that_fails_twice_is_repeated_and_a_third_failure_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    monkeypatch.setattr(storage, "RETRY_DELAYS", (0, 0))
    stale = [OSError(errno.ESTALE, "Stale file handle")] * failures  # what a network file system may say

    class Unreliable:
        """A file system whose first requests fail."""

        def open_input_file(self, path: str) -> io.BytesIO:
            if stale:
                raise stale.pop()
            return io.BytesIO(b"answer")

    monkeypatch.setattr(storage, "resolve", lambda location: (Unreliable(), location))
    source = remote_reader.RemoteDataset(str(folder))
    if failures == 2:
        assert source.read("a.beton", limit=100) == b"answer"
    else:
        with pytest.raises(UserError, match=r"a\.beton cannot be read, tried 3 times \(Stale file handle\): fix"):
            source.read("a.beton", limit=100)


@pytest.mark.slow
def test_object_storage_that_is_damaged_missing_or_away_is_reported_without_its_key(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_storage() as bucket:
        flip(folder / "train-00001.beton", 2**21 + 100)
        bucket.upload(folder, "set")
        with pytest.raises(
            UserError, match=r"s3://images/set/train-00001\.beton .* its SHA-256 is another one"
        ) as error:
            stage(bucket.location("set"), tmp_path / "disk")
        assert "secret" not in str(error.value)
        with pytest.raises(UserError, match=r"s3://images/none/manifest\.json.* is missing: is this the address"):
            stage(bucket.location("none"), tmp_path / "disk")
        location = bucket.location("set")
    monkeypatch.setattr(storage, "RETRY_DELAYS", ())  # pyarrow's own attempts take seconds
    with pytest.raises(
        UserError, match=r"manifest\.json.* cannot be read, tried 1 times .*fix the cause, or rerun"
    ) as error:
        stage(location, tmp_path / "disk")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_link_in_the_place_of_unfinished_work_is_not_followed(folder: Path, tmp_path: Path) -> None:
    name = folder_name(load_manifest(folder))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / f".{name}.staging").symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match="is a link or a file, and not the folder of an interrupted command: remove it"):
        stage(str(folder), tmp_path / "disk")
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis"]


def test_impossible_addresses_and_names_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pigeon://x/y is not an address that can be read: "):
        stage("pigeon://me:secret@x/y", tmp_path / "disk")
    with pytest.raises(UserError, match=r"set/no/manifest\.json is missing"):
        stage(str(folder / "no"), tmp_path / "disk")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be read or written"):
        stage(str(folder), tmp_path / "file")
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"name": "../../my photos"}))
    assert stage(str(folder), tmp_path / "disk").name.startswith("my-photos-")
    manifest["splits"]["train"]["files"][0]["file"] = "../../escape"
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not the name of an FFCV file inside the data set's folder"):
        stage(str(folder), tmp_path / "disk")


def test_a_data_set_is_not_staged_into_itself(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for inside in (folder, folder / "scratch"):
        with pytest.raises(UserError, match=r"lies in the data set .* itself: name a folder outside of it"):
            stage(str(folder), inside)
    assert sorted(folder.rglob("*")) == before


def test_a_folder_of_the_users_by_the_name_of_the_result_is_kept(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "scratch" / folder_name(load_manifest(folder))
    target.mkdir(parents=True)
    (target / "notes.txt").touch()
    with pytest.raises(UserError, match="is not a staged data set: rename it, or remove it"):
        stage(str(folder), target.parent)
    assert [path.name for path in target.iterdir()] == ["notes.txt"]


@pytest.mark.timeout(30)
def test_a_folder_where_no_file_can_be_made_is_named_at_once(textures: Path) -> None:
    with pytest.raises(UserError, match=r"^/proc/.* cannot be read or written"):
        stage(str(textures), Path("/proc"))
