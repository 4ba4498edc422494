"""Small prepared data sets for tests, written image by image: photographs of noise, some stored as pixels."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.format import beton
from data_prep.format.beton import JPEG, RAW, Sample
from data_prep.format.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    File,
    ImageClass,
    Manifest,
    Part,
    Source,
    Split,
    SplitName,
    load_manifest,
)

CLASSES = 3
SIZES: Mapping[SplitName, Sequence[int]] = {"train": (9, 6, 7), "validation": (4, 5)}


def make_samples(count: int, seed: int = 0, scale: int = 1) -> list[Sample]:
    """`count` images of about 40×56 pixels times `scale`; each fourth is raw, labels go round."""
    random = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        height, width = scale * (40 + number % 5), scale * (56 - number % 3)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        if number % 4 == 3:
            samples.append(Sample(np.asarray(image).tobytes(), RAW, height, width, number % CLASSES))
        else:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            samples.append(Sample(buffer.getvalue(), JPEG, height, width, number % CLASSES))
    return samples


def write_dataset(
    folder: Path, sizes: Mapping[SplitName, Sequence[int]] = SIZES, seed: int = 0, scale: int = 1
) -> Manifest:
    """A data set whose splits have shards of these numbers of samples."""
    folder.mkdir(parents=True)
    splits: dict[SplitName, Split] = {}
    sides: set[int] = set()
    for number, (name, counts) in enumerate(sizes.items()):
        samples = make_samples(sum(counts), 2 * seed + number, scale)
        sides.update(side for sample in samples for side in (sample.height, sample.width))
        splits[name] = _write_split(folder, name, samples, counts)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name="noise",
        classes=[ImageClass(index=i, id=f"n{i:08}", name=f"noise {i}") for i in range(CLASSES)],
        splits=splits,
        encoding="mixed",
        max_side=max(sides),
        min_side=min(sides),
        seed=seed,
        source=Source(kind="noise", location="generated", digest="0" * 64, options={"scale": scale}),
        tools={"numpy": np.__version__},
    )
    save(folder, manifest)
    return manifest


def save(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")


def describe(path: Path, samples: int) -> File:
    """What the manifest says of a file, if it is believed as it is."""
    content = path.read_bytes()
    return File(file=path.name, samples=samples, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def content(folder: Path) -> dict[SplitName, list[tuple[bytes, int, int, int, int]]]:
    """All samples of a data set, in order."""
    return {
        name: [
            (np.asarray(sample.content).tobytes(), *sample[1:])
            for file in split.files
            for shard in [beton.Shard(folder / file.file)]
            for sample in map(shard.read, range(shard.samples))
        ]
        for name, split in load_manifest(folder).splits.items()
    }


def _write_split(folder: Path, name: SplitName, samples: list[Sample], counts: Sequence[int]) -> Split:
    files, parts = [], []
    remaining = iter(samples)
    for number, count in enumerate(counts):
        path = folder / f"{name}-{number:05d}.beton"
        written = beton.write_shard(path, [next(remaining) for _ in range(count)], count)
        files.append(File(file=path.name, samples=count, bytes=written.file_bytes, sha256=written.file_sha256))
        parts.append(Part(samples=count, sha256=written.content_sha256))
    labels = [sample.label for sample in samples]
    return Split(
        samples=len(samples),
        samples_per_class=np.bincount(labels, minlength=CLASSES).tolist(),
        bytes=sum(len(sample.content) for sample in samples),
        untouched=sum(sample.mode == JPEG for sample in samples),
        raw=sum(sample.mode == RAW for sample in samples),
        files=files,
        parts=parts,
        left_out=[],
    )
