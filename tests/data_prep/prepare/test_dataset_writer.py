"""Writing at scale: a shard has the same bytes for any executor; dead processes are replaced, full disks reported."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import resize

from data_prep.codec.convert import to_jpeg, to_raw
from data_prep.codec.decode import decode
from data_prep.codec.jpeg_header import read_header
from data_prep.common.errors import UserError
from data_prep.common.parallel import Executor, ThreadExecutor
from data_prep.format.beton import JPEG, RAW
from data_prep.format.manifest import Manifest
from data_prep.maintain.verify import verify
from data_prep.prepare.dataset_writer import Estimate, prepare
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.folders import ClassFolders
from data_prep.sources.image_index import ImageIndex
from data_prep.sources.textures import Textures
from tests.helpers import datasets
from tests.helpers.disks import fill, small_disk
from tests.helpers.memory import peak_kilobytes

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
def test_the_data_set_is_bitwise_the_same_for_any_executor(
    photos: Path, expected: Path, tmp_path: Path, shards: int, threads: int
) -> None:
    write(photos, tmp_path / "out", threads, shards)
    assert files_of(tmp_path / "out") == files_of(expected)


DIE_WHILE_WRITING = """
import os, signal, sys


def die(event, arguments):
    if event == "open" and ".beton." in str(arguments[0]) and str(arguments[0]).endswith(".partial"):
        for number in range(2):
            try:
                os.close(os.open(f"{MARKS}/died{number}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(die)
"""


@pytest.mark.slow
def test_ray_tasks_write_the_same_and_survive_the_death_of_their_process(
    photos: Path, expected: Path, tmp_path: Path
) -> None:
    """The processes of the first two tasks that begin a shard are killed there."""
    site = tmp_path / "site"
    site.mkdir()
    program = f"MARKS = {str(site)!r}\n{DIE_WHILE_WRITING}"
    (site / "sitecustomize.py").write_text(program, encoding="utf-8")  # Python imports it in every process
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    output = tmp_path / "out"
    command = [*COMMAND, str(photos), str(output), "--shard-samples", "9", "--cluster", "local", "--workers", "2"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert (site / "died1").exists() and "80 train and 16 validation images" in done.stdout
    assert files_of(output) == files_of(expected)


HOLD = """
import sys, threading
from pathlib import Path
from data_prep.sources.textures import Textures
from data_prep.common.parallel import Executor, ThreadExecutor
from data_prep.prepare.spec import PrepareSpec
from data_prep.prepare.dataset_writer import prepare
done = 0
def hold(images):
    global done
    done += images
    if done == 175:
        print("holding", flush=True)
        threading.Event().wait()
source = Textures(0, 60)
prepare(source, Path(sys.argv[1]), PrepareSpec.of(source, shard_samples=50), ThreadExecutor(1, hold), threads=2)
"""


@pytest.mark.slow
def test_two_commands_cannot_write_one_output_and_the_killed_ones_work_is_kept(tmp_path: Path) -> None:
    output, work = tmp_path / "out", tmp_path / ".out.preparing"
    command = [*COMMAND, "textures", str(output), "--train-per-class", "60", "--shard-samples", "50"]
    with subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout and first.stdout.readline() == "holding\n"
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert second.returncode == 2 and "is being prepared by another command" in second.stderr
        first.send_signal(signal.SIGKILL)
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("*.beton")}
    assert len(kept) == 3
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert all((output / name).stat().st_mtime_ns == written for name, written in kept.items())
    assert verify(output).problem_count == 0


def test_a_full_disk_is_reported_and_writing_resumes_when_there_is_space(tmp_path: Path) -> None:
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

        with pytest.raises(
            UserError,
            match=r"no space is left on the disk of .*out: free disk space, then rerun the same command to resume",
        ):
            prepare(source, output, spec, ThreadExecutor(1), on_estimate=use_up)
        kept = list((disk / ".out.preparing").glob("train-*.beton"))
        assert kept and not output.exists()
        with pytest.raises(UserError, match=r"needs about 0\.0 GB, but .* has 0\.0 GB free: free disk space"):
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
    channels = torch.from_numpy(whole).permute(2, 0, 1).double()
    resized = resize(channels, [stored.height, stored.width], antialias=True)
    expected = resized.permute(1, 2, 0).numpy()
    pixels = np.frombuffer(stored.content, np.uint8).reshape(stored.height, stored.width, 3)
    assert stored.mode == RAW and max(stored.height, stored.width) == 30
    assert np.abs(pixels - expected).max() < 1.01


def test_mixed_stores_a_seeded_share_of_the_images_raw(photos: Path, tmp_path: Path) -> None:
    manifest = write(photos, tmp_path / "out", encoding="mixed", raw_share=0.25)
    split = manifest.splits["train"]
    assert 10 <= split.raw <= 30 and split.untouched == 80 - split.raw
    assert write(photos, tmp_path / "again", 2, encoding="mixed", raw_share=0.25).digest == manifest.digest
    assert verify(tmp_path / "out").problem_count == 0


def test_a_photograph_of_thirty_megapixels_is_shrunk_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.radial_gradient("L").resize((6400, 4800)).convert("RGB").save(path, quality=95)
    content = path.read_bytes()
    stored, kilobytes = peak_kilobytes(lambda: to_jpeg(content, 512))
    assert (stored.height, stored.width) == (384, 512)
    assert kilobytes < 60_000, "its pixels alone have 92,000"


def test_odd_but_complete_jpegs_are_re_encoded_and_decode_without_warnings() -> None:
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG")
    odd = bytearray(buffer.getvalue())
    odd[11] = 9  # an unknown version of the header
    stored = to_jpeg(bytes(odd), 512)
    assert not stored.untouched and to_jpeg(stored.content, 512).untouched


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from data_prep.sources.textures import Textures
from data_prep.common.parallel import Executor, ThreadExecutor
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


INTERRUPTED = """
import os, signal, sys
from data_prep.prepare import shard_writer
from pipeline.cli.main import main
write, records = shard_writer.write_atomically, []
def interrupt(path, content):
    write(path, content)
    records.append(path)
    if len(records) == 2:
        os.kill(os.getpid(), signal.SIGINT)
shard_writer.write_atomically = interrupt
main()
"""


@pytest.mark.slow
def test_ctrl_c_ends_within_a_moment_and_keeps_what_is_finished(tmp_path: Path) -> None:
    arguments = ["prepare", "textures", str(tmp_path / "out"), "--train-per-class", "120", "--shard-samples", "50"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert 2 <= len(list((tmp_path / ".out.preparing").glob("train-*.json"))) < 20 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("the disk is too small")])
def test_what_listing_has_found_outlives_an_interruption_and_no_refusal(tmp_path: Path, error: BaseException) -> None:
    source = Textures(0, 2, 1)
    spec, listed = PrepareSpec.of(source), []

    class Counted(Textures):
        def list(self, scratch: Path, executor: Executor) -> ImageIndex:
            listed.append(scratch)
            return super().list(scratch, executor)

    def stop(estimate: Estimate) -> None:
        raise error

    counted = Counted(0, 2, 1)
    with pytest.raises(type(error)):
        prepare(counted, tmp_path / "out", spec, ThreadExecutor(1), on_estimate=stop)
    kept = isinstance(error, KeyboardInterrupt)
    assert (tmp_path / ".out.preparing").exists() == kept
    prepare(counted, tmp_path / "out", spec, ThreadExecutor(1))
    assert len(listed) == (1 if kept else 2)
