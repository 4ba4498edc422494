"""How fast images become batches, against the stock FFCV loader, torchvision's DataLoader and WebDataset.

    python -m benchmarks.loader --images FOLDER

FOLDER holds class folders of photographs. They are stored as JPEG of at most 500 pixels, and as raw pixels of at most
256; all loaders read the same JPEG files (the stock one the same FFCV file), on the same cores, in one call. They load
random resized crops (area 0.08 to 1), mirrored at random, as uint8, in batches of 256. A small folder is repeated until
an epoch has enough images: the stock loader allocates its buffers in each epoch. The loaders take turns; medians over
the rounds, after a first epoch that is not counted, are compared. The last line is JSON:

    stock_ffcv_224, stock_ffcv_128    images/s of ours over the stock FFCV loader's, JPEG to 224 and 128 pixels
    torchvision_224                   ours over torchvision's DataLoader, JPEG to 224 pixels
    torchvision_raw_224               ours from raw pixels over torchvision's DataLoader from JPEG, to 224 pixels
    webdataset_224                    ours over WebDataset's loader, if it is installed
    first_batch_s                     from `import data_prep` to the first batch, in a process that has torch loaded
    images_per_second                 of each loader; rounds: how far they were apart (largest over smallest)
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from benchmarks.options import count
from data_prep.codec import convert
from data_prep.codec.decode import decode
from data_prep.format.beton import RAW, Sample, write_shard
from data_prep.format.manifest import File, ImageClass, Manifest, Part, Source, Split
from data_prep.loading.loader import Loader
from data_prep.loading.transforms import Flip, RandomCrop

BATCH = 256
SCALE, RATIO = (0.08, 1.0), (0.75, 4 / 3)
JPEG_SIDE, RAW_SIDE = 500, 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="class folders of photographs")
    parser.add_argument("--samples", type=count, default=9400, help="at least so many images an epoch [%(default)s]")
    parser.add_argument("--rounds", type=count, default=3, help="times that each loader runs [%(default)s]")
    parser.add_argument(
        "--threads", type=count, default=os.cpu_count(), help="or workers, of each loader [%(default)s]"
    )
    chosen = parser.parse_args()
    photographs = read_photographs(parser, chosen.images)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        repeats = -(-chosen.samples // len(photographs))
        print(f"{len(photographs)} photographs, {repeats} times each; {chosen.threads} threads or workers", flush=True)
        epochs = make_epochs(folder, photographs, repeats, chosen.threads)
        times = measure(epochs, chosen.rounds)
        first = statistics.median(first_batch(folder / "jpeg") for _ in range(3))
    samples = repeats * len(photographs)
    speed = {name: samples / statistics.median(each) for name, each in times.items()}
    for name, rate in speed.items():
        print(f"{name:20s} {rate:8.0f} images/s")
    ratios = {
        "stock_ffcv_224": speed["ours 224"] / speed["stock ffcv 224"],
        "stock_ffcv_128": speed["ours 128"] / speed["stock ffcv 128"],
        "torchvision_224": speed["ours 224"] / speed["torchvision 224"],
        "torchvision_raw_224": speed["ours raw 224"] / speed["torchvision 224"],
    }
    if "webdataset 224" in speed:
        ratios["webdataset_224"] = speed["ours 224"] / speed["webdataset 224"]
    result = {name: round(ratio, 2) for name, ratio in ratios.items()}
    rates = {name: round(rate) for name, rate in speed.items()}
    spread = {name: round(max(each) / min(each), 2) for name, each in times.items()}
    print(json.dumps({**result, "first_batch_s": round(first, 2), "images_per_second": rates, "rounds": spread}))
    return 0


def read_photographs(parser: argparse.ArgumentParser, folder: Path) -> list[tuple[convert.StoredImage, int]]:
    """The images below `folder` as stored JPEG files of at most JPEG_SIDE pixels, with their classes."""
    classes = sorted(each for each in folder.glob("*") if each.is_dir())
    found = [
        (convert.to_jpeg(path.read_bytes(), JPEG_SIDE), label)
        for label, each in enumerate(classes)
        for path in sorted(each.iterdir())
    ]
    if not found:
        parser.error(f"{folder} holds no class folders with images")
    return found


def make_epochs(
    folder: Path, photographs: list[tuple[convert.StoredImage, int]], repeats: int, threads: int
) -> dict[str, Callable[[int], int]]:
    """For each loader, a function that goes through an epoch, given its number, and returns how many images it saw."""
    jpeg = [Sample(image.content, 0, image.height, image.width, label) for image, label in photographs]
    raw = [to_raw(image, label) for image, label in photographs]
    write_data_set(folder / "jpeg", jpeg, repeats)
    write_data_set(folder / "raw", raw, repeats)
    classes = folder / "classes"
    for number, (image, label) in enumerate(photographs):
        path = classes / f"{label:03d}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.content)
    epochs: dict[str, Callable[[int], int]] = {}
    for size in (224, 128):
        epochs[f"ours {size}"] = ours(folder / "jpeg", size, threads)
        epochs[f"stock ffcv {size}"] = stock_ffcv(folder / "jpeg" / "train.beton", size, threads)
    epochs["ours raw 224"] = ours(folder / "raw", 224, threads)
    epochs["torchvision 224"] = torchvision_loader(classes, repeats, 224, threads)
    if importlib.util.find_spec("webdataset"):
        epochs["webdataset 224"] = webdataset_loader(folder, photographs, repeats, 224, threads)
    return epochs


def measure(epochs: dict[str, Callable[[int], int]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each epoch after the first, the loaders taking turns."""
    times: dict[str, list[float]] = {name: [] for name in epochs}
    seen = set()
    for number in range(rounds + 1):
        for name, epoch in epochs.items():
            started = time.perf_counter()
            seen.add(epoch(number))
            if number:
                times[name].append(time.perf_counter() - started)
    assert len(seen) == 1, f"loaders saw different numbers of images: {seen}"
    return times


def to_raw(image: convert.StoredImage, label: int) -> Sample:
    """The pixels of an image, shrunk to RAW_SIDE."""
    from PIL import Image

    pixels = np.empty((image.height, image.width, 3), np.uint8)
    decode(image.content, image.height, image.width, pixels)
    small = Image.fromarray(pixels)
    small.thumbnail((RAW_SIDE, RAW_SIDE), Image.Resampling.LANCZOS)
    return Sample(np.asarray(small).tobytes(), RAW, small.height, small.width, label)


def write_data_set(folder: Path, samples: list[Sample], repeats: int) -> None:
    """A prepared data set whose training split is the samples, several times."""
    folder.mkdir()
    written = write_shard(folder / "train.beton", samples * repeats, len(samples) * repeats)
    sides = [side for sample in samples for side in (sample.height, sample.width)]
    number = max(sample.label for sample in samples) + 1
    split = Split(
        samples=written.samples,
        samples_per_class=[repeats * sum(each.label == label for each in samples) for label in range(number)],
        bytes=written.content_bytes,
        untouched=0,
        raw=0,
        files=[File(file="train.beton", samples=written.samples, bytes=written.file_bytes, sha256=written.file_sha256)],
        parts=[Part(samples=written.samples, sha256=written.content_sha256)],
        left_out=[],
    )
    manifest = Manifest(
        format_version=2,
        name=folder.name,
        classes=[ImageClass(index=label, id=str(label), name=str(label)) for label in range(number)],
        splits={"train": split},
        encoding="mixed",
        max_side=max(sides),
        min_side=min(sides),
        seed=0,
        source=Source(kind="folders", location="", digest="", options={}),
        tools={},
    )
    (folder / "manifest.json").write_text(manifest.model_dump_json())


def ours(folder: Path, size: int, threads: int) -> Callable[[int], int]:
    """The loader of this project."""
    loader = Loader(
        folder,
        batch_size=BATCH,
        size=size,
        augmentations=[RandomCrop(SCALE, RATIO), Flip()],
        shuffle="full",
        threads=threads,
    )
    return lambda epoch: sum(len(batch.images) for batch in loader.epoch(epoch))


def stock_ffcv(path: Path, size: int, workers: int) -> Callable[[int], int]:
    """FFCV's own loader, with its own compiled pipeline."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
        from ffcv.loader import Loader as StockLoader
        from ffcv.loader import OrderOption
        from ffcv.transforms import RandomHorizontalFlip

        pipelines = {
            "image": [RandomResizedCropRGBImageDecoder((size, size), SCALE, RATIO), RandomHorizontalFlip()],
            "label": [IntDecoder()],
        }
        loader = StockLoader(
            str(path),
            batch_size=BATCH,
            num_workers=workers,
            order=OrderOption.RANDOM,
            drop_last=False,
            os_cache=True,
            pipelines=pipelines,
        )

    def epoch(number: int) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sum(len(batch) for batch, _ in loader)

    return epoch


def torchvision_loader(classes: Path, repeats: int, size: int, workers: int) -> Callable[[int], int]:
    """torchvision's ImageFolder in torch's DataLoader."""
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.RandomResizedCrop(size, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    )
    folder: torch.utils.data.Dataset = torch.utils.data.ConcatDataset([ImageFolder(str(classes), transform)] * repeats)
    loader = torch.utils.data.DataLoader(folder, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda epoch: sum(len(batch) for batch, _ in loader)


def webdataset_loader(
    folder: Path, photographs: list[tuple[convert.StoredImage, int]], repeats: int, size: int, workers: int
) -> Callable[[int], int]:
    """WebDataset's shards, decoded by Pillow, in as many processes."""
    import torch
    import webdataset
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.RandomResizedCrop(size, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    )
    shards = []
    for shard in range(workers):
        shards.append(str(folder / f"shard-{shard}.tar"))
        with tarfile.open(shards[-1], "w") as archive:
            for number in range(shard, len(photographs) * repeats, workers):
                image, label = photographs[number % len(photographs)]
                for suffix, content in (("jpg", image.content), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{number}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    dataset = webdataset.WebDataset(shards, shardshuffle=False).shuffle(1000).decode("pilrgb").to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(transform, int).batched(BATCH)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)

    def epoch(number: int) -> int:
        batches: Iterable = loader
        return sum(len(batch) for batch, _ in batches)

    return epoch


def first_batch(folder: Path) -> float:
    """Seconds from `import data_prep` to the first batch, in a process that has torch loaded."""
    script = (
        "import sys, time, torch; start = time.perf_counter(); import data_prep;"
        "from data_prep.loading.loader import Loader;"
        "from data_prep.loading.transforms import Flip, RandomCrop;"
        "loader = Loader(sys.argv[1], batch_size=256, size=224, augmentations=[RandomCrop(), Flip()],"
        " shuffle='full', threads=2);"
        "next(loader.epoch(0)); print(time.perf_counter() - start)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=True, capture_output=True, text=True)
    return float(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
