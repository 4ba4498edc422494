"""Merging: the same samples in one file, for stock FFCV too; killed at any moment, it leaves a data set that loads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.common.files import MADE_HERE, hash_file
from data_prep.format import beton
from data_prep.format.manifest import MANIFEST_FILE, load_manifest
from data_prep.maintain.merge import MERGED_NOTE, bytes_to_read, merge
from tests.helpers.datasets import content, save, write_dataset
from tests.helpers.disks import fill, small_disk


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


MERGED = {"manifest.json", "train.beton", "validation.beton"}


def test_merging_in_place_keeps_samples_parts_and_digest(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    before = write_dataset(folder)
    samples = content(folder)
    read: list[int] = []
    expected = bytes_to_read(folder)
    merged = merge(folder, advance=read.append)
    assert not merged.already_there
    assert names(folder) == MERGED
    assert content(folder) == samples
    after = load_manifest(folder)
    assert after == merged.manifest and after.digest == before.digest
    assert [split.parts for split in after.splits.values()] == [split.parts for split in before.splits.values()]
    assert sum(read) == expected
    for split in after.splits.values():
        assert hash_file(folder / split.files[0].file) == split.files[0].sha256
    again = merge(folder)
    assert again.already_there and again.manifest == after and bytes_to_read(folder) == 0


def test_merging_to_an_output_leaves_the_data_set_alone(tmp_path: Path) -> None:
    folder, output = tmp_path / "set", tmp_path / "new" / "merged"
    before = write_dataset(folder, {"train": (5, 6), "validation": (4,)})
    files = {path: path.read_bytes() for path in folder.iterdir()}
    merge(folder, output)
    assert {path: path.read_bytes() for path in folder.iterdir()} == files
    assert names(output) == MERGED and names(output.parent) == {"merged"}
    assert content(output) == content(folder)
    assert load_manifest(output).digest == before.digest
    assert merge(folder, output).already_there
    other = [each.model_copy(update={"name": f"other {each.name}"}) for each in before.classes]
    save(output, before.model_copy(update={"classes": other, "splits": {}}))
    with pytest.raises(UserError, match="already exists and is not this data set: choose another"):
        merge(folder, output)


def test_pages_fit_the_largest_shard_and_no_sample_crosses_one(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sizes = ([10, 2**21 - 5, 100], [2**22 + 1, 3, 2**22], [7, 2**21, 2**21])
    manifest = write_dataset(folder, {"train": (3, 3, 3)})
    files = []
    for file, lengths in zip(manifest.splits["train"].files, sizes, strict=True):
        samples = [beton.Sample(bytes([i]) * length, beton.JPEG, 1, 1, 0) for i, length in enumerate(lengths)]
        written = beton.write_shard(folder / file.file, samples, 5)  # room for more than there are
        files.append(file.model_copy(update={"bytes": written.file_bytes, "sha256": written.file_sha256}))
    train = manifest.splits["train"].model_copy(update={"files": files})
    save(folder, manifest.model_copy(update={"splits": {"train": train}}))
    samples = content(folder)
    merge(folder)
    assert content(folder) == samples
    shard = beton.Shard(folder / "train.beton")
    assert shard.page_size == 2**23
    assert shard.table["sample"].tolist() == list(range(9))
    entry = shard.locate(np.arange(9))
    assert np.array_equal(entry.start // shard.page_size, (entry.start + entry.size - 1) // shard.page_size)
    size = (folder / "train.beton").stat().st_size
    assert size <= sum(file.bytes for file in files)  # what is asked for before beginning


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stock_ffcv_reads_shards_and_merged_file_alike(tmp_path: Path) -> None:
    folder, output = tmp_path / "set", tmp_path / "merged"
    write_dataset(folder, {"train": (9, 6, 7)})
    merge(folder, output)
    program = """
import json, sys
import numpy as np
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
def read(paths, cached):
    images, labels = [], []
    for path in paths:
        reader = Reader(path)
        assert sorted(reader.alloc_table["sample_id"].tolist()) == list(range(reader.num_samples))
        loader = Loader(path, batch_size=4, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=cached,
            drop_last=False, pipelines={"image": [CenterCropRGBImageDecoder((32, 32), 1.0)], "label": [IntDecoder()]})
        for image, label in loader:
            images.append(np.array(image))
            labels.append(np.array(label).ravel())
    return np.concatenate(images), np.concatenate(labels)
*shards, merged = sys.argv[1:]
for cached in (True, False):
    expected, found = read(shards, cached), read([merged], cached)
    assert len(found[1]) == 22 and found[0].std() > 10
    assert np.array_equal(expected[0], found[0]) and np.array_equal(expected[1], found[1])
"""
    shards = [str(path) for path in sorted(folder.glob("train-*.beton"))]
    command = [sys.executable, "-c", program, *shards, str(output / "train.beton")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def in_a_process(action: Callable[[], object], kill_at: int) -> bool:
    """Runs `action` in a fork that is killed right before its `kill_at`-th change of files; whether it ended first."""
    child = os.fork()
    if child == 0:
        changes = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal changes
            writes = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
            if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                if changes == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                changes += 1

        sys.addaudithook(count)
        action()
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [True, False])
def test_killed_at_any_moment_it_leaves_a_data_set_that_loads_and_the_same_command_finishes(
    tmp_path: Path, in_place: bool
) -> None:
    write_dataset(tmp_path / "set")
    samples = content(tmp_path / "set")
    moments = 0
    ended = False
    while not ended:
        folder = tmp_path / str(moments) / "set"
        folder.parent.mkdir()
        write_dataset(folder)
        output = None if in_place else folder.parent / "merged"
        ended = in_a_process(lambda folder=folder, output=output: merge(folder, output), moments)  # type: ignore[misc]
        assert content(folder) == samples
        merge(folder, output)
        assert content(output or folder) == samples
        assert names(output or folder) == MERGED
        assert names(folder.parent) == ({"set"} if in_place else {"set", "merged"})
        moments += 1
    assert moments > 10


def test_a_damaged_shard_is_named_and_not_merged(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    manifest = write_dataset(folder)
    shard = folder / "train-00001.beton"
    whole = shard.read_bytes()
    entry = beton.Shard(shard).locate(np.array([0]))
    table = beton.Shard(shard).data_end
    for place in (int(entry.start[0] + entry.size[0] // 2), beton.METADATA_START + 20, table + 17, 2000, 2**20):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        shard.write_bytes(damaged)
        for output in (None, tmp_path / "merged"):
            with pytest.raises(UserError, match=r"train-00001\.beton.*(copy|prepare)"):
                merge(folder, output)
            assert names(folder) == {"manifest.json", *(f.file for s in manifest.splits.values() for f in s.files)}
            assert names(tmp_path) == {"set"}
    shard.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"train-00001\.beton has \d+ bytes instead of"):
        merge(folder)
    shard.write_bytes(whole)
    assert not merge(folder).already_there


def test_a_manifest_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_dataset(folder)
    path = folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    for name in ("../precious.beton", "/etc/x.beton", "", "manifest.json", "sub/x.beton", "..", "a\x1b.beton"):
        manifest["splits"]["train"]["files"][0]["file"] = name
        path.write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="is not the name of an FFCV file inside the data set's folder"):
            merge(folder)


@pytest.mark.parametrize(
    "note",
    [
        *('{"a": 1}', "[1]", "no JSON", '["train.beton"]'),
        *(
            f'[{{"file": "{name}", "samples": 1, "bytes": 1, "sha256": "0"}}]'
            for name in ("../thesis", "/thesis", "manifest.json", ".", "a/b.beton")
        ),
    ],
)
def test_a_note_from_elsewhere_removes_nothing(tmp_path: Path, note: str) -> None:
    folder = tmp_path / "set"
    write_dataset(folder)
    (tmp_path / "thesis").touch()
    (folder / MERGED_NOTE).write_text(note.replace('"/', f'"{tmp_path}/'))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"\.merged\.json is not what an interrupted merge leaves behind: remove it"):
        merge(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_only_the_files_that_were_merged_are_removed_after_an_interruption(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_dataset(folder)
    shards = [file for split in load_manifest(folder).splits.values() for file in split.files]
    kept = {file.file: (folder / file.file).read_bytes() for file in shards}
    merge(folder)
    for file in shards:
        (folder / file.file).write_bytes(kept[file.file])
    same_size, other_size, link, *_ = [folder / file.file for file in shards]
    same_size.write_bytes(kept[same_size.name][::-1])
    other_size.write_bytes(b"a user's")
    link.unlink()
    link.symlink_to("elsewhere")
    sheet = folder / f".contact-sheet.png.{'0' * 16}.partial"
    (folder / f".train.beton.{'0' * 16}.partial").touch()
    sheet.touch()
    (folder / MERGED_NOTE).write_text(json.dumps([file.model_dump() for file in shards]))
    assert merge(folder).already_there
    assert names(folder) == MERGED | {same_size.name, other_size.name, link.name, sheet.name}


def test_a_link_beside_the_output_is_not_followed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    (tmp_path / ".out.merging").symlink_to(tmp_path / "home")
    (tmp_path / ".out.preparing").symlink_to(tmp_path / "home")
    with pytest.raises(UserError, match=r"\.out\.merging is a link or a file"):
        merge(tmp_path / "set", tmp_path / "out")
    (tmp_path / ".out.merging").unlink()
    assert len(merge(tmp_path / "set", tmp_path / "out").manifest.splits["train"].files) == 1
    assert (tmp_path / "home" / "thesis").exists() and (tmp_path / ".out.preparing").is_symlink()


def test_what_a_killed_merge_left_is_replaced_and_what_a_user_has_there_is_not(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set")
    (tmp_path / ".out.merging").mkdir()
    (tmp_path / ".out.merging" / "thesis").touch()
    with pytest.raises(UserError, match=r"\.out\.merging is not the folder of an interrupted command: rename it"):
        merge(tmp_path / "set", tmp_path / "out")
    (tmp_path / ".out.merging" / MADE_HERE).touch()
    (tmp_path / "out").mkdir()  # empty
    merge(tmp_path / "set", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("manifest.json", "train.beton", "validation.beton")
    ]


def test_an_output_that_cannot_be_replaced_is_found_before_the_work(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert merge(tmp_path / "set", tmp_path / "link").folder == tmp_path / "elsewhere"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"loop is a loop of links: remove it"):
        merge(tmp_path / "set", tmp_path / "loop")
    assert not list(tmp_path.glob(".*.merging"))


def test_a_second_merge_is_refused_while_the_first_runs(tmp_path: Path) -> None:
    folder, output = tmp_path / "set", tmp_path / "merged"
    write_dataset(folder)
    refusals: list[str] = []

    def second(target: Path | None) -> Callable[[int], None]:
        def attempt(count: int) -> None:
            if len(refusals) < 2:
                with pytest.raises(UserError) as error:
                    merge(folder, target)
                refusals.append(str(error.value))

        return attempt

    merge(folder, output, advance=second(output))
    assert all("is being written by another command: wait" in refusal for refusal in refusals)
    refusals.clear()
    merge(folder, advance=second(None))
    assert len(refusals) == 2 and all("is being merged by another command: wait" in refusal for refusal in refusals)
    assert names(folder) == MERGED


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "three", {"train": (3, 3, 3)})
    write_dataset(tmp_path / "one", {"train": (3,)})
    with small_disk(tmp_path / "disk", 20) as disk:
        with pytest.raises(UserError, match=r"has .* free, and .* are needed: free disk space, or choose another disk"):
            merge(tmp_path / "three", disk / "merged")
        assert names(disk) == set()
        with pytest.raises(UserError, match=r"no space is left on the disk of .*merged: free disk space, then rerun"):
            merge(tmp_path / "one", disk / "merged", advance=lambda count: fill(disk) and None)
        assert names(disk) == {"filler"}
        (disk / "filler").unlink()
        assert content(merge(tmp_path / "one", disk / "merged").folder) == content(tmp_path / "one")
