"""How fast photographs become a prepared data set, against FFCV's own writer.

    python -m benchmarks.write --images FOLDER

FOLDER holds class folders of photographs; a small one is repeated. Both writers get the same files and the same
processors, in one call, and take turns; medians over the rounds are compared. FFCV's writer decodes, shrinks to at most
512 pixels and encodes at quality 90, with its processes; this project's keeps the bytes of JPEGs that are small enough,
after decoding each as a check, and encodes the others at quality 95. The last line is JSON:

    stock_writer         images/s of ours over the stock writer's
    identical_jpegs      share of the JPEG files that may keep their bytes which did
    images_per_second    of both
    memory_growth_mb     of our peak memory (without mapped files), from writing these images to four times as many
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.options import count
from data_prep.codec.convert import ORIENTATION
from data_prep.common.parallel import ThreadExecutor
from data_prep.format.beton import Shard
from data_prep.format.manifest import load_manifest
from data_prep.prepare.dataset_writer import prepare
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.folders import ClassFolders

MAX_SIDE = 512
SHARD_SAMPLES = 1000
"""Few enough that memory stops growing with a shard long before the images end."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="class folders of photographs")
    parser.add_argument("--samples", type=count, default=1500, help="at least so many images [%(default)s]")
    parser.add_argument("--rounds", type=count, default=3, help="times that each writer runs [%(default)s]")
    parser.add_argument("--workers", type=count, default=os.cpu_count(), help="threads or processes [%(default)s]")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)  # a source, for a process of its own
    chosen = parser.parse_args()
    if chosen.memory_of:
        with tempfile.TemporaryDirectory() as scratch:
            print(peak_kilobytes(lambda: ours(chosen.memory_of, chosen.workers)(Path(scratch) / "out")))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = repeated(parser, chosen.images, Path(scratch) / "source", chosen.samples)
        files = sorted((root / "train").glob("*/*"))
        writers = {"ours": ours(root, chosen.workers), "stock ffcv": stock(files, chosen.workers)}
        times: dict[str, list[float]] = {name: [] for name in writers}
        images = {name: len(files) for name in writers}
        share = 0.0
        for number in range(chosen.rounds + 1):
            for name, write in writers.items():
                output = Path(scratch) / "out"
                started = time.perf_counter()
                write(output)
                if number:  # the first fills the system's cache of files
                    times[name].append(time.perf_counter() - started)
                if name == "ours":
                    share = identical_share(files, output)
                    images[name] = sum(split.samples for split in load_manifest(output).splits.values())
                shutil.rmtree(output)
        speed = {name: images[name] / statistics.median(each) for name, each in times.items()}
        larger = repeated(parser, chosen.images, Path(scratch) / "larger", 4 * chosen.samples)
        peaks = [memory(chosen.images, source, chosen.workers) for source in (root, larger)]
    for name, rate in speed.items():
        print(f"{name:12s} {rate:8.0f} images/s")
    result = {
        "stock_writer": round(speed["ours"] / speed["stock ffcv"], 2),
        "identical_jpegs": round(share, 4),
        "images_per_second": {name: round(rate) for name, rate in speed.items()},
        "memory_growth_mb": round((peaks[1] - peaks[0]) / 1e3, 1),
    }
    print(json.dumps(result))
    return 0


def repeated(parser: argparse.ArgumentParser, images: Path, root: Path, samples: int) -> Path:
    """A source whose training images are those of `images`, each several times; one of each class is for validation."""
    files = sorted(path.resolve() for path in images.glob("*/*"))
    if not files:
        parser.error(f"{images} holds no class folders with images")
    for split, turns in (("train", -(-samples // len(files))), ("val", 1)):
        for file in files if split == "train" else {file.parent: file for file in files}.values():
            folder = root / split / file.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            for turn in range(turns):
                (folder / f"{turn:03d}-{file.name}").symlink_to(file)
    return root


def ours(root: Path, workers: int) -> Callable[[Path], object]:
    """This project's writer, as the command `phasecollapse prepare` uses it."""
    source = ClassFolders(root)
    spec = PrepareSpec.of(source, max_side=MAX_SIDE, shard_samples=SHARD_SAMPLES)
    return lambda output: prepare(source, output, spec, ThreadExecutor(2), threads=workers)


def stock(files: list[Path], workers: int) -> Callable[[Path], object]:
    """FFCV's own writer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

    names = sorted({path.parent.name for path in files})
    labels = {name: label for label, name in enumerate(names)}

    class Photographs:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            with Image.open(files[index]) as image:
                return image.convert("RGB"), labels[files[index].parent.name]

    def write(output: Path) -> None:
        output.mkdir()
        fields = {
            "image": RGBImageField(write_mode="jpg", max_resolution=MAX_SIDE, jpeg_quality=90),
            "label": IntField(),
        }
        DatasetWriter(str(output / "train.beton"), fields, num_workers=workers).from_indexed_dataset(
            Photographs(), shuffle_indices=True
        )

    return write


def identical_share(files: list[Path], output: Path) -> float:
    """Of the JPEG files that need no change, the share whose bytes are in the data set."""
    manifest = load_manifest(output)
    shards = [Shard(output / file.file) for file in manifest.splits["train"].files]
    stored = Counter(bytes(shard.read(number).content) for shard in shards for number in range(shard.samples))
    eligible = Counter(content for path in files if may_stay(content := path.read_bytes()))
    return sum((stored & eligible).values()) / max(1, sum(eligible.values()))


def may_stay(content: bytes) -> bool:
    """Whether a file is an upright JPEG, gray or in color, that is small enough."""
    with Image.open(io.BytesIO(content)) as image:
        plain = image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")
        return plain and image.getexif().get(ORIENTATION, 1) == 1 and max(image.size) <= MAX_SIDE


def memory(images: Path, source: Path, workers: int) -> int:
    """Peak memory, in kilobytes, of a process that prepares a source and does nothing else."""
    command = [sys.executable, "-m", "benchmarks.write", "--images", str(images), "--memory-of", str(source)]
    done = subprocess.run([*command, "--workers", str(workers)], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def peak_kilobytes(run: Callable[[], object]) -> int:
    """Peak memory of this process, without the files that it maps, while the body runs."""
    ended = threading.Event()
    sizes = []

    def watch() -> None:
        while not ended.wait(0.02):
            [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
            sizes.append(int(line.split()[1]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    ended.set()
    watcher.join()
    return max(sizes)


if __name__ == "__main__":
    sys.exit(main())
