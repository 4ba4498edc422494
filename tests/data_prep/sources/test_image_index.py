"""Listings that do not fit into memory: sorted on the disk, read row by row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.common.errors import UserError
from data_prep.common.files import explain_os_errors
from data_prep.format.manifest import ImageClass
from data_prep.prepare.selection import Selection
from data_prep.sources import image_index
from data_prep.sources.image_index import (
    IMAGES,
    ImageIndex,
    ImageIndexBuilder,
    IndexedImage,
    map_table,
    pick,
    write_table,
)
from tests.helpers import disks

CLASSES = ("a", "b", "z")


def found(number: int) -> tuple[str, IndexedImage]:
    """Images in an order that is neither that of classes nor that of names; some have the same name."""
    identity = CLASSES[number % 3]
    return identity, IndexedImage(f"train/{identity}/{number * 7 % 30:02d} é.jpg", f"file {number}", number, 2 * number)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "BATCH_ROWS", 4)


def indexed(folder: Path, count: int = 50) -> pa.Table:
    builder = ImageIndexBuilder(folder, "train")
    for number in range(count):
        builder.add(*found(number))
    assert builder.classes == set(CLASSES)
    return builder.table(CLASSES)


def test_images_are_listed_by_class_and_name_and_those_of_one_name_as_they_came(
    tmp_path: Path, small_batches: None
) -> None:
    expected = sorted((found(number) for number in range(50)), key=lambda each: (each[0], each[1].name))
    table = indexed(tmp_path)
    assert table.schema == IMAGES
    rows = [{"label": CLASSES.index(identity), **image._asdict()} for identity, image in expected]
    assert table.to_pylist() == rows
    assert [path.name for path in tmp_path.iterdir()] == ["train.arrow"]  # nothing but the table stays


def test_what_an_interrupted_listing_has_left_is_not_mixed_in(tmp_path: Path, small_batches: None) -> None:
    interrupted = ImageIndexBuilder(tmp_path, "train")
    for number in range(9):
        interrupted.add(*found(number))
    assert indexed(tmp_path).num_rows == 50


@pytest.mark.parametrize("rows", [[], [3], [49, 0, 17, 17, 4, 3, 48], list(range(50))])
def test_rows_are_picked_in_any_order(tmp_path: Path, small_batches: None, rows: list[int]) -> None:
    table = indexed(tmp_path)
    assert len(table.to_batches()) == 13
    whole = table.to_pylist()
    assert pick(table, np.array(rows, np.int64)).to_pylist() == [whole[row] for row in rows]


def test_the_digest_does_not_depend_on_how_rows_are_batched(tmp_path: Path) -> None:
    table = indexed(tmp_path)
    classes = [ImageClass(index=label, id=identity, name=identity) for label, identity in enumerate(CLASSES)]
    digests = set()
    for size in (3, 50):
        path = tmp_path / f"{size}.arrow"
        write_table(table.combine_chunks().to_batches(max_chunksize=size), path)
        digests.add(ImageIndex(classes, {"train": map_table(path), "validation": table}).digest())
    assert len(digests) == 1


def test_a_selection_of_many_batches_is_that_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Source:
        kind, location, options = "folders", "here", {}

        def list(self, scratch: Path, executor: object) -> ImageIndex:
            classes = [ImageClass(index=label, id=each, name=each) for label, each in enumerate(CLASSES)]
            folders = [scratch / split for split in ("one", "other")]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            return ImageIndex(classes, {"train": indexed(folders[0]), "validation": indexed(folders[1])})

    chosen = []
    for rows in (3, 1000):
        monkeypatch.setattr("data_prep.prepare.selection.BATCH_ROWS", rows)
        selection = Selection(Source(), ("z", "a"), per_class=7, seed=3)
        chosen.append(selection.list(tmp_path / str(rows), None))  # type: ignore[arg-type]
    assert chosen[0].splits["train"].to_pylist() == chosen[1].splits["train"].to_pylist()
    assert np.bincount(chosen[0].labels("train")).tolist() == [7, 7]
    assert np.bincount(chosen[0].labels("validation")).tolist() == [17, 16]


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    builder = ImageIndexBuilder(tmp_path, "train")
    builder.add("a", IndexedImage("train/a/\udcff.jpg", "file", 0, 1))
    with pytest.raises(UserError, match=r"train/a/\\udcff\.jpg has a name that is not in UTF-8: rename it"):
        builder.table(["a"])


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_index, "CACHE_KILOBYTES", 64)
    full = pytest.raises(UserError, match=r"no space is left on the disk of .*set: ")
    with disks.small_disk(tmp_path / "disk", 1) as disk, full, explain_os_errors(tmp_path / "set"):
        indexed(disk, 30000)


BUILD_INDEX = """
import sys
from pathlib import Path
import numpy as np
from data_prep.sources import image_index
image_index.CACHE_KILOBYTES = 4096
count = int(sys.argv[2])
builder = image_index.ImageIndexBuilder(Path(sys.argv[1]), "train")
for number in range(count):
    name = f"train/class {number % 1000:03d}/{number:09d}.jpg"
    builder.add(f"class {number % 1000:03d}", image_index.IndexedImage(name, "/data/images/" + name, 0, 100_000))
table = builder.table([f"class {label:03d}" for label in range(1000)])
for first in range(0, count, 50_000):
    image_index.pick(table, np.arange(first, count, 1009))
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    peaks = []
    for count in (20_000, 400_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", BUILD_INDEX, str(folder), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(1000 * int(done.stdout))
    mapped = (tmp_path / "400000" / "train.arrow").stat().st_size  # which the system drops when memory is short
    assert peaks[1] - peaks[0] < mapped + 30e6
