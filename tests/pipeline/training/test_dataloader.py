"""The image stream: who sees which image when, what randomness depends on, and what happens to damaged images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.common.errors import UserError
from data_prep.format.beton import Shard
from pipeline.config.schema import DataSettings
from pipeline.training.dataloader import Batch, ImageStream, Subset

PLAIN: dict[str, Any] = {"random_crop": False, "flip": False, "center_crop": 1.0}


def open_stream(
    folder: Path, subset: Subset = "train", *, rank: int = 0, world_size: int = 1, **options: Any
) -> ImageStream:
    batch_size, seed = options.pop("batch_size", 50), options.pop("seed", 0)
    data = DataSettings(path=str(folder), **{"flip": False, **options})
    return ImageStream(folder, data, subset, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)


def indices_of(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


def joined(ranks: list[list[Batch]]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]]:
    """Global batches, put together from every rank's part: rank r has the positions p with p mod ranks = r."""
    batches = []
    for parts in zip(*ranks, strict=True):
        first, end, count = parts[0].end - parts[0].size, parts[0].end, len(parts)
        turns = [torch.arange(first + (rank - first) % count, end, count) for rank in range(count)]
        order = torch.cat(turns).argsort()
        images, labels, indices = (
            torch.cat([getattr(part, name) for part in parts])[order] for name in ("images", "labels", "indices")
        )
        batches.append((images, labels, indices, parts[0].size))
    return batches


# Who sees which image


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_training_image_is_seen_once_an_epoch(textures: Path, world_size: int) -> None:
    streams = [open_stream(textures, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [index for stream in streams for index in indices_of(list(stream.epoch(3)))]
    assert sorted(seen) == list(range(240))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_validation_image_is_seen_once_and_in_order(textures: Path, world_size: int) -> None:
    streams = [open_stream(textures, "validation", rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = joined([list(stream.epoch(0)) for stream in streams])
    assert torch.cat([indices for _, _, indices, _ in batches]).tolist() == list(range(70))


def test_ranks_without_images_still_take_every_step(textures: Path) -> None:
    streams = [open_stream(textures, "validation", rank=rank, world_size=80, batch_size=100) for rank in range(80)]
    parts = [list(stream.epoch(0)) for stream in streams]
    assert {len(part) for part in parts} == {1}
    assert sorted(index for part in parts for index in indices_of(part)) == list(range(70))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_are_bitwise_the_same_for_any_number_of_ranks_and_threads(
    textures: Path, world_size: int, threads: int
) -> None:
    reference = joined([list(open_stream(textures).epoch(1))])
    streams = [
        open_stream(textures, rank=rank, world_size=world_size, decode_threads=threads) for rank in range(world_size)
    ]
    for ours, theirs in zip(joined([list(stream.epoch(1)) for stream in streams]), reference, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True)) and ours[3] == theirs[3]


@pytest.mark.parametrize("evaluate_on", ["validation", "holdout"])
def test_holdout_is_left_out_of_training_when_it_is_evaluated(textures: Path, evaluate_on: str) -> None:
    options = {"evaluate_on": evaluate_on, "holdout": 0.2}
    held_out = indices_of(list(open_stream(textures, "holdout", **options).epoch(0)))
    trained = indices_of(list(open_stream(textures, "train", **options).epoch(0)))
    assert 24 <= len(held_out) <= 72 and held_out == sorted(held_out)
    if evaluate_on == "holdout":
        assert sorted(held_out + trained) == list(range(240))
    else:
        assert sorted(trained) == list(range(240))
    another = indices_of(list(open_stream(textures, "holdout", seed=1, **options).epoch(0)))
    assert another != held_out


def test_a_larger_holdout_contains_the_smaller_one(textures: Path) -> None:
    small, large = (
        set(indices_of(list(open_stream(textures, "holdout", evaluate_on="holdout", holdout=part).epoch(0))))
        for part in (0.1, 0.3)
    )
    assert small < large


def test_batches_say_the_global_size_and_steps_count_them(textures: Path) -> None:
    streams = [open_stream(textures, batch_size=64, rank=rank, world_size=3) for rank in range(3)]
    ranks = [list(stream.epoch(0)) for stream in streams]
    assert [stream.steps() for stream in streams] == [4, 4, 4] and {stream.samples for stream in streams} == {240}
    assert [batch.size for batch in ranks[0]] == [64, 64, 64, 48]
    for parts in zip(*ranks, strict=True):
        sizes = [len(part.labels) for part in parts]
        assert sum(sizes) == parts[0].size and max(sizes) - min(sizes) <= 1


# What is in a batch


def test_validation_is_the_same_in_every_epoch_and_for_every_seed(textures: Path) -> None:
    reference = list(open_stream(textures, "validation", batch_size=70).epoch(0))
    for seed, epoch in ((0, 1), (5, 0)):
        again = list(open_stream(textures, "validation", batch_size=70, seed=seed).epoch(epoch))
        assert torch.equal(again[0].images, reference[0].images)


def test_order_and_crops_depend_on_seed_and_epoch(textures: Path) -> None:
    def by_index(seed: int, epoch: int) -> tuple[list[int], torch.Tensor]:
        [batch] = open_stream(textures, batch_size=240, seed=seed).epoch(epoch)
        return batch.indices.tolist(), batch.images[batch.indices.argsort()]

    order, images = by_index(0, 0)
    same_order, same_images = by_index(0, 0)
    assert order == same_order and torch.equal(images, same_images)
    for seed, epoch in ((0, 1), (1, 0)):
        other_order, other_images = by_index(seed, epoch)
        differing = (images != other_images).flatten(1).any(1).float().mean()
        assert order != other_order and differing > 0.95
    assert order != sorted(order)


def test_mirrored_images_are_the_mirror_of_the_others(textures: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"  # a copy that does not say it holds textures, which may not be mirrored
    shutil.copytree(textures, photographs)
    path = photographs / "manifest.json"
    path.write_text(path.read_text().replace('"kind": "textures"', '"kind": "folders"'))
    [plain] = open_stream(photographs, batch_size=240, **PLAIN).epoch(0)
    [mixed] = open_stream(photographs, batch_size=240, **{**PLAIN, "flip": True}).epoch(0)
    same = (mixed.images == plain.images).flatten(1).all(1)
    mirrored = (mixed.images == plain.images.flip(2)).flatten(1).all(1)
    assert torch.all(same ^ mirrored) and 80 < mirrored.sum() < 160


# Damage, threads, wrong settings


@pytest.mark.parametrize("damage", ["header", "middle", "cut"])
def test_a_damaged_image_stops_the_epoch_and_is_named(textures: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(textures, folder)
    found = Shard(folder / "train-00001.beton").locate(np.array([37]))
    start, size = int(found.start[0]), int(found.size[0])
    first, last = {"header": (0, 2), "middle": (size - 1500, size - 1000), "cut": (size - 2000, size)}[damage]
    with (folder / "train-00001.beton").open("r+b") as file:
        file.seek(start + first)
        file.write(b"\xff\xd9" * ((last - first) // 2))
    stream = open_stream(folder, decode_threads=2)
    seen = []
    with pytest.raises(
        UserError, match=r"train-00001\.beton: sample 37 \(image 137 of the train split\) cannot be decoded"
    ):
        for batch in stream.epoch(0):
            seen += batch.indices.tolist()
    assert 137 not in seen
    assert len(list(open_stream(folder, "validation").epoch(0))) == 2  # whose shard is whole


def test_threads_of_torch_are_left_alone(textures: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = list(open_stream(textures, decode_threads=3, batch_size=32).epoch(0))
        assert torch.get_num_threads() == 2 and len(batches) == 8
    finally:
        torch.set_num_threads(before)


def test_settings_that_do_not_fit_the_data_set_are_named(textures: Path, tmp_path: Path) -> None:
    cases: list[tuple[Subset, dict[str, Any], str]] = [
        ("train", {"classes": 1000}, r"data\.classes is 1000, but .* has 10 classes"),
        ("train", {"image_size": 224}, r"data\.image_size is 224, but no side .* longer than 64 pixels"),
        ("train", {"flip": True}, r"data\.flip must be false"),
        ("holdout", {"evaluate_on": "holdout", "holdout": 1e-6}, r"data\.holdout is 1e-06, which leaves no image"),
        ("train", {"evaluate_on": "holdout", "holdout": 1 - 1e-9}, r"leaves no image in the train part"),
    ]
    for subset, options, message in cases:
        with pytest.raises(UserError, match=message):
            open_stream(textures, subset, **options)
    with pytest.raises(UserError, match="does not exist"):
        open_stream(tmp_path / "nowhere")
