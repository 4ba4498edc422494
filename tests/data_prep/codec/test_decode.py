"""The compiled decoder: its pixels are those of other decoders, and damage is never served."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data_prep.codec import _pixels
from data_prep.codec.decode import JOB, DecodeError, Severity, check, decode, decode_batch, whole
from data_prep.codec.jpeg_header import read_header
from data_prep.format.beton import JPEG, RAW

Picture = tuple[np.ndarray, int, int]


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1))


def jpeg(image: Image.Image, **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return np.frombuffer(buffer.getvalue(), np.uint8)


def job(
    content: np.ndarray, mode: int, shape: tuple[int, int], crop: tuple[int, int, int, int], mirrored: bool = False
) -> np.ndarray:
    jobs = np.zeros(1, JOB)
    jobs[0] = (content.ctypes.data, content.size, mode, *shape, *crop, mirrored)
    return jobs


def one(jobs: np.ndarray, height: int, width: int, reduce: bool = False) -> np.ndarray:
    out = np.empty((1, height, width, 3), np.uint8)
    assert decode_batch(jobs, out, reduce) == []
    return out[0]


def averaged(pixels: np.ndarray, crop: tuple[int, int, int, int], height: int, width: int) -> np.ndarray:
    """The formula in double precision: each output pixel is the mean of the source over its own rectangle."""
    top, left, crop_height, crop_width = crop

    def weights(start: int, length: int, sources: int, outputs: int) -> np.ndarray:
        edges = start + length * np.arange(outputs + 1) / outputs
        cells = np.arange(sources)
        overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        overlap = np.maximum(overlap, 0)
        return overlap / overlap.sum(1, keepdims=True)

    down = weights(top, crop_height, pixels.shape[0], height)
    across = weights(left, crop_width, pixels.shape[1], width)
    return np.einsum("ij,jkc,lk->ilc", down, pixels.astype(np.float64), across)


KINDS = {
    "420": {"subsampling": "4:2:0"},
    "422": {"subsampling": "4:2:2"},
    "444": {"subsampling": "4:4:4"},
    "progressive": {"progressive": True},
    "optimized": {"optimize": True, "quality": 40},
    "restarts": {"restart_marker_blocks": 3},
}


@pytest.mark.parametrize("kind", [*KINDS, "gray"])
def test_a_crop_is_bitwise_that_of_the_whole_picture(kind: str) -> None:
    random = np.random.default_rng(1)
    for height, width in ((97, 131), (64, 64), (17, 300), (1, 1), (8, 9)):
        image = noise(height, width).convert("L") if kind == "gray" else noise(height, width)
        content = jpeg(image, **KINDS.get(kind, {}))
        whole = np.empty((height, width, 3), np.uint8)
        decode(content, height, width, whole)
        by_pillow = np.asarray(Image.open(io.BytesIO(content.tobytes())).convert("RGB"), np.int64)
        assert np.abs(whole - by_pillow).max() <= 6  # the fast inverse transform rounds differently
        for _ in range(30):
            crop_height, crop_width = random.integers(1, (height + 1, width + 1))
            top, left = random.integers(0, (height - crop_height + 1, width - crop_width + 1))
            crop = (int(top), int(left), int(crop_height), int(crop_width))
            expected = whole[top : top + crop_height, left : left + crop_width]
            found = one(job(content, JPEG, (height, width), crop), crop_height, crop_width)
            assert np.array_equal(found, expected), (height, width, crop)
            mirrored = one(job(content, JPEG, (height, width), crop, True), crop_height, crop_width)
            assert np.array_equal(mirrored, expected[:, ::-1])


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
@pytest.mark.parametrize("size", [(31, 17), (40, 40), (7, 3), (1, 1), (12, 90)])
def test_shrinking_averages_areas(mode: str, size: tuple[int, int]) -> None:
    height, width = 120, 95
    pixels = np.asarray(noise(height, width))
    content, kind = np.ascontiguousarray(pixels).ravel(), RAW
    if mode == "jpeg":
        content, kind = jpeg(noise(height, width)), JPEG
        pixels = np.empty((height, width, 3), np.uint8)
        decode(content, height, width, pixels)
    crop = (11, 2, max(size[0], 91), max(size[1], 90))
    found = one(job(content, kind, (height, width), crop), *size)
    assert np.abs(found - averaged(pixels, crop, *size)).max() <= 0.5 + 1e-3
    assert np.array_equal(one(job(content, kind, (height, width), crop, True), *size), found[:, ::-1])


def test_enlarging_interpolates_between_centers_and_stays_inside_the_crop() -> None:
    pixels = np.asarray(noise(9, 11)).copy()
    pixels[:, :3], pixels[:2] = 255, 0  # around the crop: must not leak in
    crop = (2, 3, 6, 7)
    found = one(job(pixels.ravel(), RAW, (9, 11), crop), 15, 28)
    inside = pixels[2:8, 3:10].astype(np.float64)

    def linear(outputs: int, sources: int) -> np.ndarray:
        centers = np.clip((np.arange(outputs) + 0.5) * sources / outputs - 0.5, 0, sources - 1)
        return np.maximum(0, 1 - np.abs(centers[:, None] - np.arange(sources)))

    expected = np.einsum("ij,jkc,lk->ilc", linear(15, 6), inside, linear(28, 7))
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_reducing_is_close_to_the_full_decode() -> None:
    height, width = 480, 640
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = [127 + 60 * np.sin(x / (20 + c)) + 60 * np.cos(y / (25 - c) + x / 40) for c in range(3)]
    content = jpeg(Image.fromarray(np.stack(waves, 2).astype(np.uint8)), quality=95)
    for size in (224, 112, 56):
        jobs = job(content, JPEG, (height, width), (3, 5, 460, 470), True)
        full, reduced = one(jobs, size, size).astype(int), one(jobs, size, size, reduce=True)
        assert not np.array_equal(full, reduced), "it was not reduced"
        assert 10 * math.log10(255**2 / np.mean((full - reduced) ** 2)) > 33


@pytest.mark.parametrize("crop", [(0, 0, 127, 256), (0, 0, 256, 127)])
def test_a_crop_is_never_reduced_below_the_output(crop: tuple[int, int, int, int]) -> None:
    content = jpeg(noise(256, 256))
    jobs = job(content, JPEG, (256, 256), crop)
    assert np.array_equal(one(jobs, 64, 64, reduce=True), one(jobs, 64, 64))


def test_photographs_lose_little_by_reducing(photographs: Path) -> None:
    """Median PSNR ≥ 33 dB and worst ≥ 26 dB against the full decode, over crops of every photograph."""
    random = np.random.default_rng(0)
    paths = sorted(photographs.glob("imagenet-sample/train/*/*"))
    ratios = []
    for path in paths:
        content = np.fromfile(path, np.uint8)
        header = read_header(content)
        for size in (224, 128, 64):
            side = int(min(header.height, header.width) * random.uniform(0.6, 1))
            top, left = (int(random.integers(0, full - side + 1)) for full in header[:2])
            jobs = job(content, JPEG, header[:2], (top, left, side, side))
            full, reduced = one(jobs, size, size).astype(int), one(jobs, size, size, reduce=True)
            if side >= 2 * size:
                ratios.append(10 * math.log10(255**2 / np.mean((full - reduced) ** 2)))
            else:
                assert np.array_equal(full, reduced)
    assert len(ratios) > 80 and np.median(ratios) >= 33 and min(ratios) >= 26


def problems_of(content: np.ndarray, height: int, width: int) -> tuple[list, list]:
    """What a check says, and what a decoder says that computes every pixel."""
    jobs = np.zeros(1, JOB)
    jobs[0] = whole(content, JPEG, height, width)
    return check(jobs), decode_batch(jobs, np.empty((1, height, width, 3), np.uint8), reduce=False)


def changed(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A file with a bit changed, cut off, with bytes missing or too many, or with a marker in the wrong place."""
    place = int(random.integers(2, len(content)))
    head, tail = content[:place], content[place:]
    some = random.integers(0, 256, int(random.integers(1, 4))).astype(np.uint8)
    ways = (
        lambda: np.concatenate([head[:-1], head[-1:] ^ np.uint8(1 << random.integers(8)), tail]),
        lambda: head.copy(),
        lambda: np.concatenate([head, content[-2:]]),
        lambda: np.concatenate([head, tail[len(some) :]]),
        lambda: np.concatenate([head, some, tail]),
        lambda: np.concatenate([head, np.array([0xFF, random.integers(0xC0, 0xFF)], np.uint8), tail]),
    )
    return ways[random.integers(len(ways))]()


@pytest.mark.parametrize("kind", [*KINDS, "gray", "long codes", "few codes"])
def test_a_check_finds_what_decoding_finds(kind: str) -> None:
    image = noise(61, 83)
    if kind == "gray":
        content = jpeg(image.convert("L"))
    elif kind == "long codes":
        content = jpeg(image, quality=100, subsampling="4:4:4")
    elif kind == "few codes":
        content = jpeg(Image.new("RGB", (83, 61), "red"))
    else:
        content = jpeg(image, **KINDS[kind])
    assert problems_of(content, 61, 83) == ([], [])
    random = np.random.default_rng(3)
    sound = 0
    for _ in range(1500):
        found, expected = problems_of(changed(content, random), 61, 83)
        assert found == expected
        sound += not expected
    assert 20 < sound < 1200, "damage of either sort is what this is about"


@pytest.mark.parametrize("kind", ["420", "444", "optimized"])
def test_codes_that_end_early_or_late_are_found_to_the_byte(kind: str) -> None:
    content = jpeg(noise(64, 64), **KINDS[kind])
    body, end = content[:-2], content[-2:]
    for extra in ([], [0x00], [0xFF, 0x00], [0xFF], [0x55, 0xAA], [0] * 20):
        found, expected = problems_of(np.concatenate([body, np.array(extra, np.uint8), end]), 64, 64)
        assert found == expected
    assert expected, "libjpeg overlooks some bytes, not twenty"
    for missing in (1, 2, 3):
        found, expected = problems_of(np.concatenate([body[:-missing], end]), 64, 64)
        assert found == expected and expected


def test_a_check_of_photographs_finds_what_decoding_finds(photographs: Path) -> None:
    random = np.random.default_rng(5)
    for path in sorted(photographs.glob("imagenet-sample/train/*/*")):
        content = np.fromfile(path, np.uint8)
        height, width = read_header(content)[:2]
        assert problems_of(content, height, width) == ([], [])
        for _ in range(8):
            found, expected = problems_of(changed(content, random), height, width)
            assert found == expected


def test_a_check_names_what_is_no_image_of_this_size() -> None:
    content = jpeg(noise(10, 12))
    jobs = np.zeros(3, JOB)
    jobs[0] = whole(content, JPEG, 10, 12)
    jobs[1] = whole(content, JPEG, 12, 10)
    jobs[2] = whole(np.zeros(360, np.uint8), RAW, 10, 12)
    assert [(each.row, each.message) for each in check(jobs)] == [(1, "it has 10×12 pixels instead of 12×10")]
    assert check(jobs[:0]) == []
    with pytest.raises(ValueError, match="are no jobs"):
        check(np.zeros(3))
    jobs["height"] = 0
    with pytest.raises(ValueError, match="rectangle"):
        check(jobs)


def test_damaged_images_are_black_and_named_and_the_others_whole() -> None:
    good = jpeg(noise(60, 80))
    broken = good.copy()
    broken[len(broken) // 2 : len(broken) // 2 + 40] = [0xFF, 0xD9] * 20  # the marker of the end
    cmyk = jpeg(noise(60, 80).convert("CMYK"))
    contents = [good, good[: len(good) // 2], broken, cmyk, np.zeros(50, np.uint8), good]
    jobs = np.concatenate([job(content, JPEG, (60, 80), (0, 0, 60, 80)) for content in contents])
    out = np.full((6, 60, 80, 3), 77, np.uint8)
    problems = decode_batch(jobs, out)
    assert [problem.row for problem in problems] == [1, 2, 3, 4]
    assert [problem.kind for problem in problems] == [
        Severity.DAMAGE,
        Severity.DAMAGE,
        Severity.FAILURE,
        Severity.FAILURE,
    ]
    assert "Premature end" in problems[0].message and "Not a JPEG" in problems[3].message
    assert not out[1:5].any() and np.array_equal(out[0], out[5]) and out[0].std() > 10


def test_harmless_oddities_are_distinguished_from_damage() -> None:
    content = jpeg(noise(40, 40))
    odd = content.copy()
    odd[11] = 9  # the version of the header
    with pytest.raises(DecodeError, match="unknown JFIF revision") as odd_error:
        decode(odd, 40, 40, np.empty((40, 40, 3), np.uint8))
    assert odd_error.value.kind is Severity.WARNING
    more = np.concatenate([content[:-2], np.zeros(7, np.uint8), content[-2:]])  # as of codes that went astray
    for damaged in (content[:-200], more):
        with pytest.raises(DecodeError) as error:
            decode(damaged, 40, 40, np.empty((40, 40, 3), np.uint8))
        assert error.value.kind is Severity.DAMAGE


def test_any_bytes_at_all_give_an_answer() -> None:
    good = jpeg(noise(50, 70), restart_marker_blocks=4)
    random = np.random.default_rng(0)
    out = np.empty((1, 32, 32, 3), np.uint8)
    reported = 0
    for _ in range(1500):
        content = good.copy()
        where = random.integers(0, len(content), random.integers(1, 30))
        content[where] = random.integers(0, 256, len(where))
        content = content[: random.integers(1, len(content) + 1)]
        reported += len(decode_batch(job(content, JPEG, (50, 70), (3, 4, 40, 41)), out))
    assert reported > 1000


@pytest.mark.parametrize(("height", "width"), [(50, 40), (41, 50), (40, 49)])
def test_images_of_another_size_than_stored_are_refused(height: int, width: int) -> None:
    content = jpeg(noise(40, 50))
    with pytest.raises(DecodeError, match=f"it has 40×50 pixels instead of {height}×{width}"):
        decode(content, height, width, np.empty((height, width, 3), np.uint8))


@pytest.mark.parametrize("crop", [(0, 0, 0, 5), (-1, 0, 5, 5), (0, 6, 5, 5), (6, 0, 5, 5), (2**31 - 1, 0, 5, 5)])
def test_rectangles_outside_of_the_image_never_reach_the_decoder(crop: tuple[int, int, int, int]) -> None:
    content = np.zeros(300, np.uint8)
    with pytest.raises(ValueError, match="rectangle"):
        decode_batch(job(content, RAW, (10, 10), crop), np.empty((1, 4, 4, 3), np.uint8))


def test_tables_and_outputs_must_fit() -> None:
    jobs = job(np.zeros(300, np.uint8), RAW, (10, 10), (0, 0, 10, 10))
    with pytest.raises(ValueError, match="jobs fill"):
        decode_batch(jobs, np.empty((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="jobs fill"):
        decode_batch(jobs, np.empty((1, 4, 4, 3), np.float32))
    with pytest.raises((ValueError, BufferError)):
        decode_batch(jobs, np.empty((1, 4, 8, 3), np.uint8)[:, :, ::2])
    jobs["size"] = 299
    with pytest.raises(ValueError, match="another size than its pixels"):
        decode_batch(jobs, np.empty((1, 4, 4, 3), np.uint8))


def test_headers_are_read_without_decoding() -> None:
    assert read_header(jpeg(noise(30, 40))) == (30, 40, 3, True, False)
    assert read_header(jpeg(noise(30, 40).convert("L"), exif=b"Exif\0\0II*\0")) == (30, 40, 1, True, True)
    with pytest.raises(DecodeError, match="does not begin like a JPEG"):
        read_header(b"\x89PNG")
    content = bytearray(jpeg(noise(30, 40)).tobytes())
    frame = content.index(b"\xff\xc0")
    for kind, common in ((0xC1, True), (0xC2, True), (0xC3, False), (0xC9, False)):
        content[frame + 1] = kind
        assert read_header(bytes(content)).common == common
    content[frame + 5 : frame + 7] = b"\0\0"
    with pytest.raises(DecodeError, match="claims 0×40 pixels"):
        read_header(bytes(content))
    with pytest.raises(DecodeError, match="damaged or truncated"):
        read_header(jpeg(noise(30, 40)).tobytes()[:100])


def test_the_layout_of_a_job_is_that_of_the_compiled_module() -> None:
    layout = tuple((name, offset, field.itemsize) for name, (field, offset) in JOB.fields.items())
    assert layout == _pixels.JOB_LAYOUT
    assert JOB.itemsize == _pixels.JOB_SIZE == sum(size for *_, size in _pixels.JOB_LAYOUT), "a field is not listed"


@pytest.mark.parametrize(
    "change",
    ["stub.JOB_SIZE += 8", "stub.JOB_LAYOUT = (*layout[:5], (layout[5][0], *layout[6][1:]), *layout[6:])"],
    ids=["size", "offset"],
)
def test_a_compiled_module_with_another_layout_is_refused(change: str) -> None:
    program = f"""
import sys
from types import SimpleNamespace
from data_prep.codec import _pixels
layout = _pixels.JOB_LAYOUT
stub = SimpleNamespace(JOB_SIZE=_pixels.JOB_SIZE, JOB_LAYOUT=layout)
{change}
sys.modules["data_prep.codec._pixels"] = sys.modules["data_prep.codec"]._pixels = stub
import data_prep.codec.decode
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: the compiled module"), done.stderr
