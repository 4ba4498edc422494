"""The FFCV file format: what is written comes back, here and in FFCV's own reader; what is broken is refused."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.codec import decode
from data_prep.common.errors import UserError
from data_prep.format import beton


def make_samples(count: int, height: int = 40, width: int = 56) -> list[beton.Sample]:
    random = np.random.default_rng(0)
    samples = []
    for label in range(count):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        samples.append(beton.Sample(buffer.getvalue(), beton.JPEG, height, width, label))
    return samples


def test_samples_come_back_as_written(tmp_path: Path) -> None:
    samples = make_samples(5)
    beton.write_shard(tmp_path / "a.beton", samples, 5)
    shard = beton.Shard(tmp_path / "a.beton")
    assert [shard.read(i).content.tobytes() for i in range(5)] == [sample.content for sample in samples]  # type: ignore[union-attr]
    found = shard.locate(np.arange(5))
    assert found.label.tolist() == [0, 1, 2, 3, 4]
    assert set(found.height) == {40} and set(found.width) == {56}
    assert [path.name for path in tmp_path.iterdir()] == ["a.beton"]


def test_no_sample_crosses_a_page_and_pages_fit_the_largest(tmp_path: Path) -> None:
    sizes = [10, 2**21 - 5, 100, 2**22 + 1, 3, 2**22]
    samples = [beton.Sample(bytes([i]) * size, beton.JPEG, 1, 1, i) for i, size in enumerate(sizes)]
    path = tmp_path / "a.beton"
    beton.write_shard(path, samples, len(samples))
    found = beton.Shard(path).locate(np.arange(len(sizes)))
    page_size = int(np.fromfile(path, beton.HEADER, 1)[0]["page_size"])
    assert page_size == 2**23
    assert np.array_equal(found.start // page_size, (found.start + found.size - 1) // page_size)
    assert [bytes(beton.Shard(path).read(i).content) for i in range(len(sizes))] == [each.content for each in samples]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_stock_ffcv_loader_sees_the_same_pixels_and_labels(tmp_path: Path) -> None:
    samples = make_samples(7)
    beton.write_shard(tmp_path / "a.beton", samples, 7)
    program = """
import sys, numpy as np
from ffcv.loader import Loader, OrderOption
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
results = {}
for name, cached in (("mapped", True), ("paged", False)):
    loader = Loader(sys.argv[1], batch_size=7, num_workers=1, order=OrderOption.SEQUENTIAL, os_cache=cached,
                    pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]})
    [(images, labels)] = list(loader)
    results[name] = np.array(images)
    assert np.array(labels).ravel().tolist() == list(range(7))
assert np.array_equal(results["mapped"], results["paged"])
np.save(sys.argv[2], results["mapped"])
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.beton"), str(tmp_path / "a.npy")], check=True)
    expected = np.empty((7, 40, 56, 3), np.uint8)
    for sample, pixels in zip(samples, expected, strict=True):
        decode.decode(sample.content, 40, 56, pixels)
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> object:
        yield make_samples(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        beton.write_shard(tmp_path / "a.beton", interrupted(), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no samples"):
        beton.write_shard(tmp_path / "a.beton", [], 2)
    with pytest.raises(ValueError, match="more samples"):
        beton.write_shard(tmp_path / "a.beton", make_samples(3), 2)
    assert list(tmp_path.iterdir()) == []


def test_foreign_unfinished_and_cut_files_are_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.beton"
    beton.write_shard(good, make_samples(3), 3)
    content = good.read_bytes()
    header = np.frombuffer(content, beton.HEADER, 1).copy()

    def changed(**values: int) -> bytes:
        altered = header.copy()
        for name, value in values.items():
            altered[name] = value
        return altered.tobytes() + content[beton.HEADER.itemsize :]

    cases = {
        "cannot be read": b"",
        "truncated after 4 bytes": b"nope",
        "not an FFCV file of version 2": b"x" * len(content),
        "unfinished": changed(table=0),
        "do not hold its 3 samples": content[:-1],
        "do not hold its 2 samples": changed(samples=2),
        "inside its metadata": changed(table=10),
        "other fields": changed(fields=1),
    }
    for message, damaged in cases.items():
        path = tmp_path / "damaged.beton"
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=message) as error:
            beton.Shard(path)
        assert str(path) in str(error.value)
    with pytest.raises(UserError, match=r"missing\.beton"):
        beton.Shard(tmp_path / "missing.beton")


def test_samples_that_lie_outside_or_are_of_unknown_kind_are_refused_when_they_are_looked_up(tmp_path: Path) -> None:
    path = tmp_path / "a.beton"
    beton.write_shard(path, make_samples(3), 3)
    content = bytearray(path.read_bytes())
    for place, value in ((5, b"\xff" * 8), (5, bytes(8)), (0, b"\7"), (0, b"\1")):  # where sample 0 is, and its mode
        damaged = content.copy()
        damaged[beton.METADATA_START + place : beton.METADATA_START + place + len(value)] = value
        path.write_bytes(damaged)
        shard = beton.Shard(path)
        assert shard.locate(np.array([1, 2])).label.tolist() == [1, 2]
        with pytest.raises(UserError, match=r"a\.beton is damaged, position, size or mode of sample 0 are invalid"):
            shard.locate(np.array([1, 0]))


def test_decoding_agrees_with_pillow_and_imports_no_ffcv() -> None:
    program = """
import io, json, sys
import numpy as np
from PIL import Image
from data_prep.codec import decode
smooth = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3).astype(np.uint8)
buffer = io.BytesIO()
Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
out = np.empty((48, 64, 3), np.uint8)
decode.decode(buffer.getvalue(), 48, 64, out)
reference = np.asarray(Image.open(buffer)).astype(int)
print(json.dumps([int(np.abs(out - reference).max()), "ffcv" in sys.modules, "torch" in sys.modules]))
"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    difference, ffcv_imported, torch_imported = json.loads(output)
    assert difference <= 4  # the library's fast inverse transform rounds differently
    assert not ffcv_imported and not torch_imported


def test_damaged_jpegs_raise_and_are_never_half_served() -> None:
    [sample] = make_samples(1)
    out = np.empty((40, 56, 3), np.uint8)
    decode.decode(sample.content, 40, 56, out)
    cut = sample.content[: len(sample.content) // 2]
    for damaged in (b"", b"hello", sample.content[:30], cut, sample.content[:-200] + b"\xff\xd0" * 100):
        with pytest.raises(decode.DecodeError):
            decode.decode(damaged, 40, 56, out)
    with pytest.raises(decode.DecodeError, match="40×56 pixels instead of 80×112"):
        decode.decode(sample.content, 80, 112, np.empty((80, 112, 3), np.uint8))
    buffer = io.BytesIO()
    Image.new("CMYK", (56, 40)).save(buffer, "JPEG")
    with pytest.raises(decode.DecodeError):
        decode.decode(buffer.getvalue(), 40, 56, out)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("page_size", 0, "page size is 0"),
        ("page_size", 2**20, "page size is 1048576"),
        ("page_size", 3 * 2**20, "page size is 3145728"),
        ("page_size", 2**31, "page size is 2147483648"),
        ("page_size", 2**32 - 1, "page size is 4294967295"),
        ("samples", 0, "holds no samples"),
    ],
)
def test_a_header_with_impossible_numbers_is_refused(tmp_path: Path, field: str, value: int, message: str) -> None:
    path = tmp_path / "a.beton"
    beton.write_shard(path, make_samples(2), 2)
    content = bytearray(path.read_bytes())
    np.frombuffer(content, beton.HEADER, 1)[field] = value
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        beton.Shard(path)


@pytest.mark.timeout(20)
def test_a_pipe_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.beton")
    with pytest.raises(UserError, match="cannot be read"):
        beton.Shard(tmp_path / "a.beton")
