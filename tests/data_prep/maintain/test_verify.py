"""Verifying: an intact data set passes; every kind of damage is found and named, not only the first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.codec.decode import DecodeError, decode
from data_prep.common.errors import UserError
from data_prep.format import beton
from data_prep.format.beton import HEADER, METADATA, METADATA_START, Sample, Shard
from data_prep.format.manifest import Manifest, Part, load_manifest
from data_prep.maintain import verification_report as problems_module
from data_prep.maintain.merge import merge
from data_prep.maintain.verify import verify
from tests.helpers.datasets import CLASSES, content, describe, make_samples, save, write_dataset

SHARD = "train-00001.beton"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set")
    return tmp_path / "set"


def found(folder: Path, **options: bool) -> list[str]:
    return [str(problem) for problem in verify(folder, **options).problems]


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def change_metadata(path: Path, change: Callable[[np.ndarray], None]) -> None:
    """Changes the metadata of a shard, (samples,) of type METADATA, in place."""
    content = bytearray(path.read_bytes())
    change(np.frombuffer(content, METADATA, Shard(path).samples, METADATA_START))
    path.write_bytes(content)


def believe(folder: Path, manifest: Manifest, **changes: object) -> None:
    """Makes the manifest agree with the files of the training images as they are, so that no hash of a file differs."""
    train = manifest.splits["train"]
    files = [describe(folder / file.file, file.samples) for file in train.files]
    train = train.model_copy(update={"files": files, **changes})
    save(folder, manifest.model_copy(update={"splits": {**manifest.splits, "train": train}}))


def test_a_whole_data_set_passes_as_shards_and_merged(folder: Path) -> None:
    for _ in range(2):
        seen: list[int] = []
        report = verify(folder, threads=2, advance=seen.append)
        assert report.problems == [] and report.problem_count == 0
        assert report.images == sum(seen) == 31
        assert verify(folder, hashes_only=True).problems == []
        merge(folder)


def test_a_truncated_and_a_missing_shard_are_both_named(folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:-10])
    (folder / "validation-00000.beton").unlink()
    for hashes_only in (False, True):
        truncated, missing = found(folder, hashes_only=hashes_only)
        assert truncated.startswith(f"{SHARD}: it has ") and "bytes instead of" in truncated
        assert missing == "validation-00000.beton: it is missing"


def place_that_decodes(jpeg: bytes, height: int, width: int) -> int:
    """A byte of a JPEG's compressed data whose lowest bit can be flipped without a complaint of libjpeg's."""
    for place in range(jpeg.index(b"\xff\xda") + 14, len(jpeg) - 2):
        flipped = bytearray(jpeg)
        flipped[place] ^= 1
        with contextlib.suppress(DecodeError):
            decode(bytes(flipped), height, width, np.empty((height, width, 3), np.uint8))
            return place
    raise AssertionError("every flipped bit is noticed")


CHANGED = f"{SHARD}: its bytes changed, its SHA-256 is not the manifest's"
OTHER_CONTENT = (
    f"{SHARD}, sample 0: this and the next 5 samples are not those that were prepared: the SHA-256 of their content is "
    "not the manifest's"
)


def test_a_flipped_bit_that_decodes_is_found_by_its_hash_and_its_samples_are_named(folder: Path) -> None:
    sample = Shard(folder / SHARD).read(1)
    place = place_that_decodes(np.asarray(sample.content).tobytes(), sample.height, sample.width)
    flip(folder / SHARD, int(Shard(folder / SHARD).locate(np.array([1])).start[0]) + place)
    assert found(folder) == [CHANGED, OTHER_CONTENT]
    assert found(folder, hashes_only=True) == [CHANGED]
    with pytest.raises(UserError, match=SHARD):
        merge(folder)


def test_a_bit_flipped_in_metadata_table_or_padding_is_found(folder: Path) -> None:
    whole = (folder / SHARD).read_bytes()
    pointer, table = METADATA_START + METADATA.itemsize + 8, Shard(folder / SHARD).data_end
    cases = {
        "sample 1: its position, size or mode is invalid": pointer,
        "sample 2: its position, size or mode is invalid": table + 2 * 24 + 8,
        "its allocation table does not name every sample once": table,
        "sample 0: it does not decode: it has": METADATA_START + 2,  # its width
        "its SHA-256 is not the manifest's": 2**20,  # between metadata and data
    }
    for message, place in cases.items():
        flip(folder / SHARD, place)
        problems = found(folder)
        assert CHANGED in problems and any(message in problem for problem in problems), (message, problems)
        assert all(problem.startswith((SHARD, "manifest.json: sides are")) for problem in problems)
        (folder / SHARD).write_bytes(whole)


def test_swapped_labels_are_found_even_if_the_hash_of_the_file_was_made_to_fit(folder: Path) -> None:
    manifest = load_manifest(folder)

    def swap(metadata: np.ndarray) -> None:
        metadata["label"][[0, 1]] = metadata["label"][[1, 0]]

    change_metadata(folder / SHARD, swap)
    assert found(folder) == [CHANGED, OTHER_CONTENT]
    believe(folder, manifest)
    assert found(folder) == [OTHER_CONTENT]
    merge(folder)
    assert found(folder) == [OTHER_CONTENT.replace(f"{SHARD}, sample 0", "train.beton, sample 9")]


def test_labels_sides_and_counts_that_the_manifest_does_not_allow_are_all_listed(folder: Path) -> None:
    manifest = load_manifest(folder)

    def change(metadata: np.ndarray) -> None:
        metadata["label"][2] = CLASSES
        metadata["label"][4] = -1
        metadata["image"]["height"][0] = 1000

    change_metadata(folder / SHARD, change)
    believe(folder, manifest, raw=1, bytes=7)
    problems = found(folder)
    listed = "\n".join(problems)
    for expected in (
        OTHER_CONTENT,
        "manifest.json: samples_per_class of train is not that of its files",
        "manifest.json: bytes of train is not that of its files",
        "manifest.json: raw of train is not that of its files",
        f"manifest.json: sides are 40 to 1000 pixels, not 40 to {manifest.max_side}",
        f"{SHARD}, sample 0: it has 1000×5",
        f"{SHARD}, sample 0: it does not decode: it has 4",
        f"{SHARD}, sample 2: its label {CLASSES} is not one of the {CLASSES} classes",
        f"{SHARD}, sample 4: its label -1 is not one of",
    ):
        assert expected in listed, (expected, problems)


def test_a_manifest_that_does_not_agree_with_itself_or_its_files_is_reported(folder: Path) -> None:
    manifest = load_manifest(folder)
    train = manifest.splits["train"]
    [first, *others] = train.files
    changed = {
        "train has 22 samples, but its files have 23": {
            "files": [first.model_copy(update={"samples": first.samples + 1}), *others]
        },
        "train-00000.beton: it holds 9 samples instead of 10": {
            "files": [first.model_copy(update={"samples": first.samples + 1}), *others]
        },
        "but its parts have 13": {"parts": train.parts[1:]},
        "but its classes have 3": {"samples_per_class": [1, 1, 1]},
        "train counts the samples of 1 classes": {"samples_per_class": [22]},
        "train-00000.beton: the manifest does not name it: remove it": {"files": others},
        "samples are not those that were prepared": {"parts": [train.parts[1], train.parts[0], train.parts[2]]},
    }
    for message, update in changed.items():
        wrong = train.model_copy(update=update)
        save(folder, manifest.model_copy(update={"splits": {**manifest.splits, "train": wrong}}))
        problems = found(folder)
        assert any(message in problem for problem in problems), (message, problems)


def test_a_file_of_another_version_of_ffcv_and_unfinished_ones_are_reported(folder: Path) -> None:
    manifest = load_manifest(folder)
    whole = (folder / SHARD).read_bytes()
    for field, value, message in (
        ("version", 3, "it is not an FFCV file of version 2"),
        ("table", 0, "it is unfinished, its writer was interrupted"),
        ("fields", 3, "it holds other fields than an image and a label"),
        ("samples", 5, "which do not hold its 5 samples"),
    ):
        content = bytearray(whole)
        np.frombuffer(content, HEADER, 1)[field] = value
        (folder / SHARD).write_bytes(content)
        believe(folder, manifest)
        problems = found(folder)
        assert len(problems) == 1 and problems[0].startswith(f"{SHARD}: it ") and message in problems[0], problems


def test_images_that_do_not_decode_are_each_named_and_the_list_is_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = load_manifest(folder)
    damaged = [
        Sample(b"not a JPEG" * 20, beton.JPEG, 40, 56, 0),
        *make_samples(1),
        *(sample._replace(content=sample.content[:-200]) for sample in make_samples(3)),
        make_samples(1)[0],
    ]
    written = beton.write_shard(folder / SHARD, damaged, 6)
    parts = list(manifest.splits["train"].parts)
    parts[1] = Part(samples=6, sha256=written.content_sha256)
    believe(folder, manifest, parts=parts)
    problems = [problem for problem in found(folder) if problem.startswith(SHARD)]
    assert problems[0] == f"{SHARD}, sample 0: it does not decode: Not a JPEG file: starts with 0x6e 0x6f"
    assert [problem.split(":")[0] for problem in problems] == [f"{SHARD}, sample {i}" for i in (0, 2, 3, 4)]
    monkeypatch.setattr(problems_module, "LISTED", 2)
    report = verify(folder)
    assert len(report.problems) == 2 and report.problem_count >= 4
    assert report.images == 31 - 4


def test_unnamed_shards_and_leftovers_are_reported_and_other_files_are_not(folder: Path) -> None:
    (folder / "more.beton").write_bytes(b"x")
    (folder / ".train.beton.partial").write_bytes(b"x")
    (folder / "README.txt").write_text("mine")
    assert found(folder, hashes_only=True) == [
        ".train.beton.partial: a command was interrupted: rerun it, or remove this file",
        "more.beton: the manifest does not name it: remove it",
    ]


def test_without_a_manifest_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        verify(tmp_path / "none")
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format_version": 1}')
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(format_version: .*prepare the data set again"):
        verify(tmp_path)


def test_a_table_in_any_order_is_whole_as_ffcvs_own_writer_leaves_it(folder: Path) -> None:
    manifest = load_manifest(folder)
    before = content(folder)
    shard = Shard(folder / SHARD)
    altered = bytearray((folder / SHARD).read_bytes())
    altered[shard.data_end :] = shard.table[::-1].tobytes()
    (folder / SHARD).write_bytes(altered)
    believe(folder, manifest)
    assert found(folder) == []
    merge(folder)
    assert found(folder) == [] and content(folder) == before
