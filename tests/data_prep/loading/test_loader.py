"""Claims about the loader: who sees which image when, what happens to damage, and what is left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.codec.decode import decode
from data_prep.common.errors import UserError
from data_prep.format import beton
from data_prep.format.beton import JPEG, RAW, Shard
from data_prep.loading.loader import BATCHES_AHEAD, Batch, Blocks, Loader, batch_bounds
from data_prep.loading.transforms import CenterCrop, Flip, Grayscale, RandomCrop, RandomErasing
from tests.helpers import datasets

WHOLE: dict[str, Any] = {"augmentations": [CenterCrop(1.0)]}
AUGMENTATIONS = (RandomCrop(), Flip(), Grayscale(0.5), RandomErasing(0.5))
SMALL_BLOCKS = Blocks(block=4, window=12, lanes=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """101 training images (76 JPEG, 25 raw) in three shards, and 23 validation images in two."""
    folder = tmp_path_factory.mktemp("loader") / "noise"
    datasets.write_dataset(folder, {"train": (40, 40, 21), "validation": (11, 12)})
    return folder


def open_loader(folder: Path, **options: Any) -> Loader:
    defaults = {"batch_size": 16, "size": 24, "augmentations": AUGMENTATIONS, "shuffle": "full"}
    return Loader(folder, **{**defaults, **options})


def global_batches(folder: Path, epoch: int, world_size: int, start: int = 0, **options: Any) -> list[dict[str, Any]]:
    """Global batches, put together from every rank's part: rank r has the positions p with p mod world_size = r."""
    loaders = [open_loader(folder, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    batches = []
    for parts in zip(*(loader.epoch(epoch, start) for loader in loaders), strict=True):
        assert len({(part.size, part.end) for part in parts}) == 1
        first = parts[0].end - parts[0].size
        turns = [np.arange(first + (rank - first) % world_size, parts[0].end, world_size) for rank in range(world_size)]
        order = np.argsort(np.concatenate(turns))
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("images", "labels", "indices")
        }
        batches.append({**joined, "end": parts[0].end})
    return batches


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["end"] == theirs["end"]
        assert all(np.array_equal(ours[name], theirs[name]) for name in ("images", "labels", "indices"))


def indices_of(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


# Who sees which image


@pytest.mark.parametrize("shuffle", ["none", "full", "blocks"])
@pytest.mark.parametrize(("world_size", "threads"), [(1, 3), (2, 1), (3, 2), (7, 1)])
def test_the_stream_is_bitwise_the_same_for_any_number_of_workers_and_threads(
    folder: Path, shuffle: str, world_size: int, threads: int
) -> None:
    options = {"shuffle": shuffle, "blocks": SMALL_BLOCKS, "seed": 5}
    expected = global_batches(folder, 2, 1, **options)
    assert_same(global_batches(folder, 2, world_size, threads=threads, **options), expected)
    assert sorted(np.concatenate([batch["indices"] for batch in expected]).tolist()) == list(range(101))


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_an_epoch_is_resumed_in_its_middle_with_another_number_of_workers(folder: Path, shuffle: str) -> None:
    options = {"shuffle": shuffle, "blocks": SMALL_BLOCKS}
    expected = global_batches(folder, 1, 2, **options)
    for stop in range(len(expected)):
        position = expected[stop]["end"]
        for world_size in (1, 3):
            assert_same(
                global_batches(folder, 1, world_size, position, **options),
                expected[stop + 1 :] if position < 101 else [],
            )


def test_another_batch_size_in_the_middle_still_shows_every_image_once(folder: Path) -> None:
    first = open_loader(folder).epoch(0)
    seen = [next(first) for _ in range(3)]
    rest = list(open_loader(folder, batch_size=10).epoch(0, seen[-1].end))
    assert sorted(indices_of(seen + rest)) == list(range(101))


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_validation_sees_each_image_once_and_in_order(folder: Path, world_size: int) -> None:
    batches = global_batches(folder, 0, world_size, split="validation", shuffle="none", augmentations=[CenterCrop()])
    assert np.concatenate([batch["indices"] for batch in batches]).tolist() == list(range(23))


def test_workers_without_images_still_take_every_step(folder: Path) -> None:
    parts = [list(open_loader(folder, batch_size=200, rank=rank, world_size=150).epoch(0)) for rank in range(150)]
    assert {len(part) for part in parts} == {1} and {part[0].size for part in parts} == {101}
    assert sorted(index for part in parts for index in indices_of(part)) == list(range(101))


def test_members_alone_are_loaded(folder: Path) -> None:
    subset_indices = np.arange(3, 101, 4)
    for shuffle in ("none", "full", "blocks"):
        loader = open_loader(folder, subset_indices=subset_indices, shuffle=shuffle, blocks=SMALL_BLOCKS)
        assert loader.samples == 25 and sorted(indices_of(list(loader.epoch(0)))) == subset_indices.tolist()


@pytest.mark.parametrize(
    ("samples", "batch_size"), [(1, 8), (7, 8), (8, 8), (9, 8), (11, 8), (12, 8), (100, 8), (17, 2)]
)
def test_batches_are_full_or_at_least_half_full(samples: int, batch_size: int) -> None:
    bounds = batch_bounds(samples, batch_size)
    sizes = [end - start for start, end in pairwise(bounds)]
    assert bounds[0] == 0 and sum(sizes) == samples and max(sizes) <= batch_size
    assert all(size == batch_size for size in sizes[:-2])
    assert samples < batch_size or 2 * min(sizes) >= batch_size
    for number, start in enumerate(bounds):
        assert batch_bounds(samples, batch_size, start) == (bounds[number:] if start < samples else [samples])


# What is in a batch


def test_pixels_and_labels_are_those_of_the_shards(folder: Path) -> None:
    stored = datasets.content(folder)["train"]
    for batch in open_loader(folder, size=40, **WHOLE).epoch(0):
        assert batch.images.dtype == np.uint8 and batch.images.shape[1:] == (40, 40, 3)
        for pixels, label, index in zip(batch.images, batch.labels.tolist(), batch.indices.tolist(), strict=True):
            content, mode, height, width, stored_label = stored[index]
            assert label == stored_label
            if height == 40:
                left = (width - 40) // 2
                whole = np.frombuffer(content, np.uint8).reshape(height, width, 3) if mode == RAW else None
                if whole is None:
                    whole = np.empty((height, width, 3), np.uint8)
                    decode(content, height, width, whole)
                assert np.array_equal(pixels, whole[:, left : left + 40])


def test_epochs_do_not_depend_on_what_was_read_before(folder: Path) -> None:
    loader = open_loader(folder)
    next(loader.epoch(0))
    list(loader.epoch(1))
    fresh = list(open_loader(folder).epoch(2))
    assert all(np.array_equal(a.images, b.images) for a, b in zip(loader.epoch(2), fresh, strict=True))


def test_batches_that_are_kept_are_never_written_again(folder: Path) -> None:
    loader = open_loader(folder, threads=2)
    kept = [batch.images[:, ::2] for batch in loader.epoch(0)]  # views, their batches are gone
    copies = [view.copy() for view in kept]
    for epoch in range(1, 4):
        list(loader.epoch(epoch))
    assert all(np.array_equal(view, copy) for view, copy in zip(kept, copies, strict=True))


def test_memory_of_batches_is_used_again(folder: Path) -> None:
    loader = open_loader(folder)
    places = {batch.images.ctypes.data for epoch in range(5) for batch in loader.epoch(epoch)}
    assert len(places) <= BATCHES_AHEAD + 5 < 5 * loader.steps()


# Damage


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """The data set with images 41 and 90 of training damaged: one cut off, one no JPEG any more."""
    copy = tmp_path / "damaged"
    datasets.write_dataset(copy, {"train": (40, 40, 21), "validation": (11, 12)})
    for name, sample, skip in (("train-00001.beton", 1, 60), ("train-00002.beton", 10, 0)):
        found = Shard(copy / name).locate(np.array([sample]))
        assert found.mode[0] == JPEG
        start, size = int(found.start[0]), int(found.size[0])
        with (copy / name).open("r+b") as file:
            file.seek(start + skip * size // 100)
            file.write(b"\xff\xd9" * ((size - skip * size // 100) // 2))
    yield copy


def test_damage_stops_the_epoch_and_is_named(damaged: Path) -> None:
    seen = []
    with pytest.raises(UserError, match=r"train-0000[12]\.beton: sample 1?[01] \(image (41|90) of the train split\)"):
        for batch in open_loader(damaged, threads=2, **WHOLE).epoch(0):
            seen += batch.indices.tolist()
    assert not {41, 90} & set(seen) and not decoding_threads()


@pytest.mark.parametrize("world_size", [1, 2])
def test_damage_can_be_skipped_and_is_counted(damaged: Path, folder: Path, world_size: int) -> None:
    skipped, seen = 0, []
    options: dict[str, Any] = {"world_size": world_size, **WHOLE}
    for rank in range(world_size):
        whole = list(open_loader(folder, rank=rank, **options).epoch(0))
        for batch, intact in zip(
            open_loader(damaged, rank=rank, on_damage="skip", **options).epoch(0), whole, strict=True
        ):
            skipped += batch.skipped
            seen += batch.indices.tolist()
            kept = np.isin(intact.indices, batch.indices)
            assert batch.size == intact.size and np.array_equal(batch.images, intact.images[kept])
            assert np.array_equal(batch.labels, intact.labels[kept])
    assert skipped == 2 and sorted(seen) == [index for index in range(101) if index not in (41, 90)]


def test_a_shard_that_was_cut_off_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cut"
    datasets.write_dataset(copy, {"train": (9,), "validation": (4,)})
    path = copy / "train-00000.beton"
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(UserError, match=r"train-00000\.beton has \d+ bytes instead of \d+"):
        open_loader(copy)


def test_labels_outside_of_the_classes_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / "labels"
    datasets.write_dataset(copy, {"train": (9,), "validation": (4,)})
    path = copy / "train-00000.beton"
    with path.open("r+b") as file:
        file.seek(beton.METADATA_START + 5 * beton.METADATA.itemsize + 16)
        file.write((77).to_bytes(8, "little"))
    with pytest.raises(UserError, match="sample 5 has label 77, outside of the 3 classes"):
        list(open_loader(copy).epoch(0))


@pytest.mark.parametrize(
    ("mode", "field", "value"),
    [
        (JPEG, "height", 0),
        (JPEG, "width", 0),
        (JPEG, "height", 65535),
        (RAW, "height", 0),
        (RAW, "width", 60000),
        (JPEG, "mode", 7),
    ],
)
def test_sizes_in_the_index_that_cannot_be_true_are_damage(tmp_path: Path, mode: int, field: str, value: int) -> None:
    copy = tmp_path / "sizes"
    datasets.write_dataset(copy, {"train": (30,), "validation": (4,)})
    path = copy / "train-00000.beton"
    content = bytearray(path.read_bytes())
    rows = np.frombuffer(content, beton.METADATA, 30, beton.METADATA_START)
    sample = int(np.flatnonzero(rows["image"]["mode"] == mode)[0])
    rows["image"][field][sample] = value
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"(size or mode of sample {sample} are invalid|sample {sample} .* it has \d+×)"
    ):
        list(open_loader(copy).epoch(0))


# What is left behind


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_leaving_an_epoch_early_ends_its_threads_and_frees_its_memory(folder: Path) -> None:
    loader = open_loader(folder, threads=2)
    iterator = loader.epoch(0)
    next(iterator)
    assert len(decoding_threads()) == 2
    iterator.close()  # type: ignore[attr-defined]
    assert not decoding_threads()
    for _ in loader.epoch(0):
        break
    del iterator
    gc.collect()
    assert not decoding_threads()


def test_the_first_batch_needs_neither_ffcv_nor_a_compiler_nor_torch(folder: Path) -> None:
    script = (
        "import sys; from data_prep.loading.loader import Loader;"
        "batch = next(Loader(sys.argv[1], batch_size=16, size=24).epoch(0)); assert len(batch.images) == 16;"
        "print([name for name in ('torch', 'ffcv', 'numba', 'ray', 'PIL', 'pyarrow', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# Large data sets


def own_kilobytes() -> int:
    """Memory of this process alone: pages of a mapped file, which the system takes back when it likes, do not count."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1])


def test_one_hundred_million_images_open_at_once_in_little_memory(tmp_path: Path) -> None:
    """A file of that many samples, of which only those of the first batch are written: the rest are holes."""
    samples, [image] = 100_000_000, datasets.make_samples(1)
    manifest = datasets.write_dataset(tmp_path / "large", {"train": (1,), "validation": (1,)})
    [entry] = manifest.splits["train"].files
    path = tmp_path / "large" / entry.file
    size = len(image.content)
    data = beton.align(beton.METADATA_START + samples * beton.METADATA.itemsize, beton.SMALLEST_PAGE)
    with path.open("wb") as file:
        header = (beton.VERSION, len(beton.FIELDS), beton.SMALLEST_PAGE, samples, data + size)
        file.write(np.array(header, beton.HEADER).tobytes())
        file.write(beton.FIELDS.tobytes())
        file.seek(data)
        file.write(image.content)
        file.truncate(data + size + samples * beton.ALLOCATION.itemsize)
    split = manifest.splits["train"].model_copy(
        update={
            "samples": samples,
            "samples_per_class": [samples, *manifest.splits["train"].samples_per_class[1:]],
            "files": [entry.model_copy(update={"samples": samples, "bytes": path.stat().st_size})],
            "parts": [manifest.splits["train"].parts[0].model_copy(update={"samples": samples})],
        }
    )
    datasets.save(tmp_path / "large", manifest.model_copy(update={"splits": {**manifest.splits, "train": split}}))

    before = own_kilobytes()
    loader = open_loader(tmp_path / "large", **WHOLE)
    first = loader.order(0).at(np.arange(16 * (BATCHES_AHEAD + 1)))
    with path.open("r+b") as file:
        for sample in first.tolist():
            file.seek(beton.METADATA_START + sample * beton.METADATA.itemsize)
            file.write(np.array(((JPEG, image.width, image.height, data), 2), beton.METADATA).tobytes())
            file.seek(data + size + sample * beton.ALLOCATION.itemsize)
            file.write(np.array((sample, data, size), beton.ALLOCATION).tobytes())
    iterator = loader.epoch(0)
    batch = next(iterator)
    assert loader.samples == samples and batch.indices.tolist() == first[:16].tolist()
    assert batch.labels.tolist() == [2] * 16 and batch.images.std() > 10
    iterator.close()  # type: ignore[attr-defined]
    assert own_kilobytes() - before < 50_000


def test_files_of_the_stock_writer_are_read_in_any_order(folder: Path) -> None:
    """FFCV's writer leaves its allocation table in the order in which its processes finished."""
    shard = Shard(folder / "train-00000.beton")
    expected = shard.locate(np.arange(40))
    shard.table = shard.table[::-1]
    found = shard.locate(np.arange(40))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
