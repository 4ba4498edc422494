"""Writing at scale: whoever writes a shard, its bytes are the same; what dies is replaced, what is full is told."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from data_prep.codec.convert import to_jpeg, to_raw
from data_prep.codec.decode import decode
from data_prep.codec.jpeg_header import read_header
from data_prep.common.errors import UserError
from data_prep.common.parallel import ThreadExecutor
from data_prep.format.beton import JPEG, RAW
from data_prep.format.manifest import Manifest
from data_prep.maintain.verify import verify
from data_prep.prepare.dataset_writer import Estimate, prepare
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.folders import ClassFolders
from data_prep.sources.textures import Textures
from tests.data_prep.codec.test_decode import averaged
from tests.helpers import datasets
from tests.helpers.disks import fill, small_disk

COMMAND = [str(Path(sys.executable).with_name("phasecollapse")), "prepare"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".beton"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 40 training and 8 validation images of each."""
    root = tmp_path_factory.mktemp("source") / "photos"
    images = iter([bytes(each.content) for each in datasets.make_samples(140) if each.mode == JPEG])
    for split, count in (("train", 40), ("val", 8)):
        for name in ("n01", "n02"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f"{number}.jpg").write_bytes(next(images))
    return root


@pytest.fixture(scope="module")
def expected(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("expected") / "out"
    write(photos, output)
    return output


def write(photos: Path, output: Path, threads: int = 1, shards: int = 1, **options: Any) -> Manifest:
    source = ClassFolders(photos)
    spec = PrepareSpec.of(source, **{"shard_samples": 9, **options})
    return prepare(source, output, spec, ThreadExecutor(shards), threads=threads).manifest


@pytest.mark.parametrize(("shards", "threads"), [(1, 3), (3, 1), (4, 2)])
def test_the_data_set_is_bitwise_the_same_whoever_writes_it(
    photos: Path, expected: Path, tmp_path: Path, shards: int, threads: int
) -> None:
    write(photos, tmp_path / "out", threads, shards)
    assert files_of(tmp_path / "out") == files_of(expected)


@pytest.mark.slow
def test_ray_tasks_write_the_same_and_survive_the_death_of_their_process(
    photos: Path, expected: Path, tmp_path: Path
) -> None:
    """A task's process is killed while it writes; the work folder's shards show when it is at work."""
    slow = tmp_path / "photos"
    slow.symlink_to(photos)
    output = tmp_path / "out"
    command = [*COMMAND, str(slow), str(output), "--shard-samples", "9", "--cluster", "local", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        killed = 0
        while running.poll() is None and killed < 2:
            for process in psutil.Process(running.pid).children(recursive=True):
                try:
                    if "ray::_call" in " ".join(process.cmdline()):
                        process.kill()
                        killed += 1
                        break
                except psutil.Error:
                    continue
            time.sleep(0.01)
        printed, errors = running.communicate(timeout=120)
    assert running.returncode == 0, errors
    assert killed and "80 train and 16 validation images" in printed
    assert files_of(output) == files_of(expected)


@pytest.mark.slow
def test_two_commands_cannot_write_one_output_and_the_killed_ones_work_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [*COMMAND, "textures", str(output), "--train-per-class", "600", "--shard-samples", "50"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        work = tmp_path / ".out.partial"
        while not list(work.glob("train-*.json")):
            assert first.poll() is None
            time.sleep(0.02)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 2 and "is being prepared by another command" in second.stderr
        first.send_signal(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.beton")}
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    finished = [name for name in kept if (output / name).stat().st_mtime_ns == kept[name]]
    assert len(finished) >= len(kept) - 2 > 0 and verify(output).problem_count == 0


def test_a_full_disk_is_told_and_the_work_goes_on_when_there_is_room(tmp_path: Path) -> None:
    source = Textures(0, 150, 10)
    spec = PrepareSpec.of(source, shard_samples=100)
    with small_disk(tmp_path / "disk", 50) as disk:
        output = disk / "out"
        fillers: list[Path] = []

        def use_up(estimate: Estimate) -> None:
            assert estimate.images == 1600 and 9e6 < estimate.bytes < 11e6 < estimate.free_bytes
            fillers.append(fill(disk))
            with fillers[0].open("r+b") as file:
                file.truncate(fillers[0].stat().st_size - 6_000_000)

        with pytest.raises(UserError, match=r"no space is left on the disk of .*out: free some, then the same command"):
            prepare(source, output, spec, ThreadExecutor(1), on_estimate=use_up)
        kept = list((disk / ".out.partial").glob("train-*.beton"))
        assert kept and not output.exists()
        with pytest.raises(UserError, match=r"needs about 0\.0 GB, but .* has 0\.0 GB free: make room"):
            fill_again = disk / "more"
            with fill_again.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(2**16))
                except OSError:
                    pass
            prepare(source, output, spec, ThreadExecutor(1))
        for path in (*fillers, disk / "more"):
            path.unlink()
        before = {path.name: path.stat().st_ino for path in kept}
        prepare(source, output, spec, ThreadExecutor(1))
        assert before.items() <= {path.name: path.stat().st_ino for path in output.iterdir()}.items()


# Encodings


def test_raw_pixels_are_those_of_the_images(photos: Path, tmp_path: Path) -> None:
    manifest = write(photos, tmp_path / "out", encoding="raw", max_side=30)
    split = manifest.splits["train"]
    assert (split.raw, split.untouched, manifest.max_side, manifest.encoding) == (80, 0, 30, "raw")
    assert verify(tmp_path / "out").problem_count == 0
    content = next((photos / "train" / "n01").iterdir()).read_bytes()
    stored = to_raw(content, 30)
    header = read_header(content)
    whole = np.empty((*header[:2], 3), np.uint8)
    decode(content, *header[:2], whole)
    expected = averaged(whole, (0, 0, *header[:2]), stored.height, stored.width)
    pixels = np.frombuffer(stored.content, np.uint8).reshape(stored.height, stored.width, 3)
    assert stored.mode == RAW and max(stored.height, stored.width) == 30
    assert np.abs(pixels - expected).max() < 0.51


def test_mixed_stores_a_seeded_share_of_the_images_raw(photos: Path, tmp_path: Path) -> None:
    manifest = write(photos, tmp_path / "out", encoding="mixed", raw_share=0.25)
    split = manifest.splits["train"]
    assert 10 <= split.raw <= 30 and split.untouched == 80 - split.raw
    assert write(photos, tmp_path / "again", 2, encoding="mixed", raw_share=0.25).digest == manifest.digest
    assert verify(tmp_path / "out").problem_count == 0


def test_a_photograph_of_thirty_megapixels_is_shrunk_in_little_memory(tmp_path: Path) -> None:
    program = """
import io, resource, sys
from PIL import Image
from data_prep.codec.convert import to_jpeg
content = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stored = to_jpeg(content, 512)
print(stored.height, stored.width, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    path = tmp_path / "large.jpg"
    Image.radial_gradient("L").resize((6400, 4800)).convert("RGB").save(path, quality=95)
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    height, width, kilobytes = map(int, done.stdout.split())
    assert (height, width) == (384, 512)
    assert kilobytes < 60_000, "its pixels alone have 92,000"


def test_odd_but_whole_jpegs_are_encoded_anew_and_decode_without_complaint() -> None:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG")
    odd = bytearray(buffer.getvalue())
    odd[11] = 9  # a version of the header that nobody knows
    stored = to_jpeg(bytes(odd), 512)
    assert not stored.untouched and to_jpeg(stored.content, 512).untouched


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from data_prep.sources.textures import Textures
from data_prep.common.parallel import ThreadExecutor
from data_prep.prepare.spec import PrepareSpec
from data_prep.prepare.dataset_writer import prepare
source = Textures(0, int(sys.argv[2]), 1)
prepare(source, Path(sys.argv[1]), PrepareSpec.of(source, shard_samples=100), ThreadExecutor(1), threads=2)
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(line.split()[1])
"""
    peaks = []
    for per_class in (10, 200):
        command = [sys.executable, "-c", program, str(tmp_path / str(per_class)), str(per_class)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert peaks[1] - peaks[0] < 15_000, f"kilobytes: {peaks}"


@pytest.mark.slow
def test_ctrl_c_ends_within_a_moment_and_keeps_what_is_finished(tmp_path: Path) -> None:
    command = [*COMMAND, "textures", str(tmp_path / "out"), "--train-per-class", "600", "--shard-samples", "50"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not list((tmp_path / ".out.partial").glob("train-*.json")):
            assert running.poll() is None
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=20)
    assert running.returncode not in (0, None) and "Traceback" not in errors
    assert list((tmp_path / ".out.partial").glob("train-*.beton")) and not (tmp_path / "out").exists()
