"""Inspecting a data set: its statistics are those of its images, and a contact sheet shows the images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from data_prep.codec.decode import decode
from data_prep.common.errors import UserError
from data_prep.format.beton import RAW, Sample, Shard
from data_prep.format.manifest import ImageClass, LeftOut, SplitName, read_manifest
from data_prep.maintain import contact_sheet
from data_prep.maintain.contact_sheet import CELL, MARGIN, draw
from data_prep.maintain.merge import merge
from data_prep.maintain.summary import render, summarize
from tests.helpers.datasets import make_samples, save, write_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set")
    return tmp_path / "set"


def test_the_numbers_are_those_of_the_images_as_shards_and_merged(folder: Path) -> None:
    samples = make_samples(22, seed=0)
    shorter = sorted(min(sample.height, sample.width) for sample in samples)
    for files in (3, 1):
        train = summarize(folder).splits["train"]
        assert (train.samples, train.files, train.parts, train.raw, train.untouched, train.encoded) == (
            22,
            files,
            3,
            sum(sample.mode == RAW for sample in samples),
            sum(sample.mode != RAW for sample in samples),
            0,
        )
        assert train.bytes_per_image == sum(len(sample.content) for sample in samples) / 22
        sides = train.shorter_sides
        assert (sides.smallest, sides.largest) == (shorter[0], shorter[-1])
        assert (sides.lower_quartile, sides.median, sides.upper_quartile) == (shorter[5], shorter[10], shorter[16])
        assert sides.histogram == [shorter.count(side) for side in range(40, 45)]
        assert train.samples_per_class == (7, 7.0, 8)
        assert [(each.name, each.samples) for each in train.most] == [("noise 0", 8), ("noise 1", 7), ("noise 2", 7)]
        assert train.file_bytes == sum(path.stat().st_size for path in folder.glob("train*.beton"))
        merge(folder)
    assert summarize(folder).digest == read_manifest(folder).digest


def test_the_most_and_the_least_frequent_classes_are_listed_apart(folder: Path) -> None:
    manifest = read_manifest(folder)
    classes = [ImageClass(index=i, id=f"n{i}", name=f"class {i}") for i in range(12)]
    counts = [2, 0, 4, 0, 3, 1, 3, 1, 2, 0, 4, 2]
    train = manifest.splits["train"].model_copy(update={"samples_per_class": counts})
    save(folder, manifest.model_copy(update={"classes": classes, "splits": {"train": train}}))
    split = summarize(folder).splits["train"]
    assert [each.samples for each in split.most] == [4, 4, 3, 3, 2]
    assert [each.samples for each in split.least] == [0, 0, 0, 1, 1]
    assert split.least[0].name == "class 9" and split.most[0].name == "class 2"


def test_the_summary_reads_well_and_names_what_was_left_out(folder: Path) -> None:
    manifest = read_manifest(folder)
    left_out = [LeftOut(image=f"photo [{i}].jpg", reason="it is cut off") for i in range(7)]
    train = manifest.splits["train"].model_copy(update={"left_out": left_out})
    save(folder, manifest.model_copy(update={"splits": {**manifest.splits, "train": train}}))
    console = Console(file=io.StringIO(), width=120)
    console.print(render(summarize(folder)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in (
        manifest.digest,
        "22",
        "photo [4].jpg: it is cut off",
        "… and 2 more, in manifest.json",
        "noise 1",
    ):
        assert expected in text
    assert "photo [5].jpg" not in text


def pixels_of(sample: Sample) -> np.ndarray:
    """(height, width, 3) int64: what is stored."""
    if sample.mode == RAW:
        return np.frombuffer(sample.content, np.uint8).reshape(sample.height, sample.width, 3).astype(int)
    pixels = np.empty((sample.height, sample.width, 3), np.uint8)
    decode(sample.content, sample.height, sample.width, pixels)
    return pixels.astype(int)


def samples_of(folder: Path, split: SplitName) -> list[Sample]:
    shards = [Shard(folder / file.file) for file in read_manifest(folder).splits[split].files]
    return [shard.read(i) for shard in shards for i in range(shard.samples)]


def frame(page: np.ndarray, columns: int, number: int) -> np.ndarray:
    """(CELL, CELL, 3): the frame of a sample in the first grid of a page."""
    row, column = divmod(number, columns)
    top = MARGIN + contact_sheet.TITLE + contact_sheet.HEADING
    y = top + row * (CELL + contact_sheet.CAPTION + contact_sheet.GAP)
    x = MARGIN + column * (CELL + contact_sheet.GAP)
    return page[y : y + CELL, x : x + CELL].astype(int)


def assert_drawn(page: np.ndarray, columns: int, samples: list[Sample]) -> None:
    """The first grid of a page shows these samples, in this order."""
    for i, sample in enumerate(samples):
        expected = pixels_of(sample)
        factor = CELL // max(expected.shape)
        height, width = factor * sample.height, factor * sample.width
        inside = frame(page, columns, i)[(CELL - height) // 2 :, (CELL - width) // 2 :][:height, :width]
        shown = inside[factor // 2 :: factor, factor // 2 :: factor]
        difference = np.abs(shown - expected)
        assert np.median(difference) == 0 and (difference > 3).mean() < 0.05  # corners are round


def test_a_sheet_shows_the_pixels_of_the_samples_in_the_order_of_their_classes(folder: Path) -> None:
    page = np.asarray(draw(folder, splits=["validation"], columns=3, rows=3))
    samples = sorted(samples_of(folder, "validation"), key=lambda sample: sample.label)
    assert len(samples) == 9
    assert_drawn(page, 3, samples)


def test_the_same_seed_draws_the_same_sheet_and_another_one_another(folder: Path) -> None:
    pictures = [draw(folder, columns=2, rows=2, seed=seed).tobytes() for seed in (0, 0, 1)]
    assert pictures[0] == pictures[1] != pictures[2]
    merge(folder)
    assert draw(folder, columns=2, rows=2, seed=0).tobytes() == pictures[0]


def test_one_class_is_found_by_id_name_and_index_and_an_unknown_one_is_refused(folder: Path) -> None:
    manifest = read_manifest(folder)
    by_id, by_name, by_index = (
        draw(folder, class_name=name, columns=4, rows=2).tobytes() for name in ("n00000002", "Noise 2", "2")
    )
    assert by_id == by_name == by_index
    of_the_class = [sample for sample in samples_of(folder, "train") if sample.label == 2]
    assert len(of_the_class) == 7
    page = np.asarray(draw(folder, splits=["train"], class_name="2", columns=4, rows=2))
    assert_drawn(page, 4, of_the_class)
    assert np.all(frame(page, 4, 7) == 255)
    with pytest.raises(UserError, match="no class dog: give an id, a name or an index, such as n00000000"):
        draw(folder, class_name="dog")
    save(folder, manifest.model_copy(update={"splits": {"train": manifest.splits["train"]}}))
    with pytest.raises(UserError, match="has no validation images: choose one of train"):
        draw(folder, splits=["validation"])
    assert isinstance(draw(folder), Image.Image)


def test_a_sheet_of_damaged_samples_shows_what_is_wrong_with_them(folder: Path) -> None:
    whole = np.asarray(draw(folder, columns=3, rows=3, splits=["validation"]))
    path = folder / "validation-00000.beton"
    entry = Shard(path).locate(np.array([0]))
    with path.open("r+b") as file:
        file.seek(int(entry.start[0]))
        file.write(b"no JPEG any more")
    damaged = np.asarray(draw(folder, columns=3, rows=3, splits=["validation"]))
    alarm = np.array([0xB3, 0x26, 0x1E])
    assert not np.all(whole == alarm, axis=-1).any() and np.all(damaged == alarm, axis=-1).sum() > 20


HOSTILE = "evil\x1b]0;title\x07\r\n\x9b2J\u202ename"


def test_text_from_outside_does_not_control_a_terminal_or_break_a_sheet(folder: Path) -> None:
    manifest = read_manifest(folder)
    classes = [each.model_copy(update={"name": HOSTILE * 5000}) for each in manifest.classes]
    left_out = [LeftOut(image=HOSTILE, reason=HOSTILE)]
    train = manifest.splits["train"].model_copy(update={"left_out": left_out})
    source = manifest.source.model_copy(update={"kind": HOSTILE, "location": HOSTILE, "options": {HOSTILE: HOSTILE}})
    changes = {"name": HOSTILE, "classes": classes, "source": source, "tools": {HOSTILE: HOSTILE}}
    save(folder, manifest.model_copy(update={"splits": {**manifest.splits, "train": train}, **changes}))
    shown = io.StringIO()
    Console(file=shown, width=10**6).print(render(summarize(folder)))
    assert "evil\\x1b]0;title\\x07\\r\\n\\x9b2J\\u202ename" in shown.getvalue()
    assert all(character.isprintable() or character == "\n" for character in shown.getvalue())
    assert draw(folder, columns=2, rows=1).size == draw(folder, columns=2, rows=1, seed=1).size


def test_the_size_of_a_sheet_is_bounded(folder: Path) -> None:
    with pytest.raises(UserError, match="a sheet of 100 × 100 images is too large: choose --columns and --rows for 20"):
        draw(folder, columns=100, rows=100)
