"""Conversion of image files: which keep their bytes, what the others become, and which are refused."""

from __future__ import annotations

import functools
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torchvision.transforms.functional import resize

from data_prep.codec.convert import check, keep_unchanged, to_jpeg, to_raw
from data_prep.codec.decode import DecodeError
from data_prep.codec.jpeg_header import read_header
from data_prep.format.beton import JPEG
from tests.helpers.images import decoded, encode, picture


def test_small_upright_jpegs_keep_their_bytes() -> None:
    for image in (picture(), picture().convert("L")):
        content = encode(image)
        assert to_jpeg(content, 40) == (content, JPEG, 30, 40, True)


def test_large_images_shrink_and_keep_their_proportions() -> None:
    stored = to_jpeg(encode(picture(300, 400)), 100)
    assert (stored.height, stored.width) == (75, 100) == decoded(stored.content).shape[:2]


def test_images_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise: its left becomes its top
    stored = to_jpeg(encode(picture(), exif=exif), 100)
    top, bottom = decoded(stored.content)[3, 15], decoded(stored.content)[-3, 15]
    assert (stored.height, stored.width) == (40, 30)
    assert top[0] > 200 > 50 > top[2] and bottom[2] > 200 > 50 > bottom[0]


@pytest.mark.parametrize(
    "kind", ["CMYK", "palette", "transparent", "transparent palette", "16 bits", "PNG", "WebP", "BMP"]
)
def test_other_kinds_of_images_become_rgb_jpegs(kind: str) -> None:
    rgb = picture()
    transparent = Image.merge("RGBA", (*rgb.split(), Image.new("L", rgb.size, 0)))
    deep = Image.fromarray(np.full((30, 40), 40_000, np.uint16))
    content, expected = {
        "CMYK": (encode(rgb.convert("CMYK")), (255, 0, 0)),
        "palette": (encode(rgb.convert("P"), "PNG"), (255, 0, 0)),
        "transparent": (encode(transparent, "PNG"), (255, 255, 255)),
        "transparent palette": (encode(transparent.quantize(), "PNG"), (255, 255, 255)),
        "16 bits": (encode(deep, "PNG"), (156, 156, 156)),
        "PNG": (encode(rgb, "PNG"), (255, 0, 0)),
        "WebP": (encode(rgb, "WEBP"), (255, 0, 0)),
        "BMP": (encode(rgb, "BMP"), (255, 0, 0)),
    }[kind]
    stored = to_jpeg(content, 100)
    assert read_header(stored.content)[:3] == (30, 40, 3)
    assert np.all(np.abs(decoded(stored.content)[5, 5].astype(int) - expected) < 12)


@pytest.mark.parametrize("max_side", [100, 10])
@pytest.mark.parametrize(
    "damage", ["empty", "text", "half", "header only", "half a PNG", "changed", "zeros", "early end"]
)
def test_damaged_images_are_not_stored(damage: str, max_side: int) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    good, png = encode(noise), encode(noise, "PNG")
    damaged = {
        "empty": b"",
        "text": b"a text",
        "half": good[: len(good) // 2],
        "header only": good[:100],
        "half a PNG": png[: len(png) // 2],
        "changed": good[:2000] + b"\1\2\3" + good[2003:],
        "zeros": good[:2000] + bytes(500) + good[2500:],
        "early end": good[:2000] + b"\xff\xd9" + good[2002:],
    }[damage]
    with pytest.raises(DecodeError):
        to_jpeg(damaged, max_side)


@pytest.mark.parametrize("format_name", ["EPS", "PDF", "PCX", "TGA", "ICO", "SGI"])
def test_formats_that_are_not_listed_are_never_tried(
    format_name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("gs", "gswin64c"):  # what Pillow starts for EPS
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    content = encode(picture(64, 64), format_name)
    for convert in (to_jpeg, to_raw):
        with pytest.raises(DecodeError, match="it is no image of a format that is read: JPEG, "):
            convert(content, 100)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("side", [30, 400])
def test_orientation_is_that_of_exif_whatever_the_size_and_the_way(side: int) -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain = encode(picture(side, side))
    told = plain[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + plain[2:]
    upright = decoded(to_jpeg(plain, 100).content)
    assert np.array_equal(decoded(to_jpeg(told, 100).content), upright)
    assert (kept := keep_unchanged([told], 100)[0]) is None or np.array_equal(decoded(kept.content), upright)
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = [encode(picture(side, side), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP", "TIFF")]
    for content in turned:
        difference = decoded(to_jpeg(content, 100).content)[::-1, ::-1].astype(int) - upright
        assert np.abs(difference).mean() < 10
        assert keep_unchanged([content], 100) == [None]


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0, 4e9])
def test_gray_values_of_many_bits_keep_their_brightness(scale: float) -> None:
    ramp = np.linspace(0, scale, 64 * 64, dtype=np.float32).reshape(64, 64)
    images = [Image.fromarray(ramp)] + ([Image.fromarray(ramp.astype(np.int32))] if 1 < scale < 2**31 else [])
    for image in images:
        stored = to_raw(encode(image, "TIFF"), 64)
        pixels = np.frombuffer(stored.content, np.uint8).reshape(64, 64, 3)
        assert np.abs(pixels[..., 0] - np.linspace(0, 255, 64 * 64).reshape(64, 64)).max() < 20
    ramp[0, 0] = np.nan
    with pytest.raises(DecodeError, match="not from 0 to white"):
        to_raw(encode(Image.fromarray(ramp), "TIFF"), 64)


@pytest.mark.parametrize("side", [60, 20])
def test_the_pixels_do_not_depend_on_the_format(side: int) -> None:
    """A class whose images are PNGs would otherwise be told from one of JPEGs by their sharpness."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((400, 400))
    expected = resize(torch.from_numpy(np.array(smooth)).permute(2, 0, 1), [side, side], antialias=True)
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "WEBP"):
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
        stored = to_raw(encode(smooth, kind, **options), side)
        pixels = np.frombuffer(stored.content, np.uint8).reshape(side, side, 3)
        error = (pixels.astype(float) - expected.permute(1, 2, 0).numpy()) ** 2
        assert 10 * np.log10(255**2 / error.mean()) > 40


def test_colors_are_stored_in_full_unless_the_source_had_fewer() -> None:
    def sampling(content: bytes) -> int:
        return JpegImagePlugin.get_sampling(Image.open(io.BytesIO(content)))

    assert sampling(to_jpeg(encode(picture(), "PNG"), 100).content) == 0
    for stored in (0, 2):
        large = encode(picture(300, 300), subsampling=stored)
        assert sampling(to_jpeg(large, 100).content) == stored


def test_progressive_files_cost_bounded_time_and_memory() -> None:
    content = encode(picture(64, 64), progressive=True)
    scan = content.index(b"\xff\xda")
    after = content.index(b"\xff\xc4", scan)  # tables of the second scan
    endless = content[:after] + content[scan:after] * 5000 + content[after:]
    with pytest.raises(DecodeError, match="scans, more than the 100 that are read"):
        to_jpeg(endless, 100)
    frame = content.index(b"\xff\xc2")
    huge = content[: frame + 5] + (20_000).to_bytes(2, "big") * 2 + content[frame + 9 :]
    with pytest.raises(DecodeError, match="needs more than 1 GB of memory"):
        check(huge)
    with pytest.raises(DecodeError, match="it has 400,000,000 pixels, more than"):
        to_jpeg(huge, 30_000)
    assert to_jpeg(content, 100).untouched


@pytest.mark.filterwarnings("ignore")  # Pillow warns of so many pixels, as prepare expects
def test_progressive_files_that_pillow_decodes_are_bounded_too() -> None:
    content = encode(picture(64, 64).convert("CMYK"), progressive=True)
    assert not to_jpeg(content, 100).untouched
    scan = content.index(b"\xff\xda")
    after = content.index(b"\xff\xc4", scan)
    for convert in (to_jpeg, to_raw):
        with pytest.raises(DecodeError, match=r"it has \d+ scans, more than the 100 that are read"):
            convert(content[:after] + content[scan:after] * 5000 + content[after:], 100)
    frame = content.index(b"\xff\xc2")
    huge = content[: frame + 5] + (12_000).to_bytes(2, "big") * 2 + content[frame + 9 :]
    with pytest.raises(DecodeError, match=r"it is progressive and needs 1\.2 GB to decode"):
        to_jpeg(huge, 30_000)


def test_metadata_behind_the_frame_header_turn_an_image_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    before = encode(picture(40, 30), exif=exif)
    start = before.index(b"\xff\xe1")
    segment = before[start : start + 2 + int.from_bytes(before[start + 2 : start + 4], "big")]
    scan = before.index(b"\xff\xda")
    behind = before[:start] + before[start + len(segment) : scan] + segment + before[scan:]
    assert read_header(behind).exif and keep_unchanged([behind], 100) == [None]
    assert (read_header(behind).height, read_header(behind).width) == (40, 30)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_white_of_a_tiff_is_that_of_its_bits(bits: int) -> None:
    white = 2**bits - 1
    values = "".join(f"{value:0{bits}b}" for value in [0, white] * 8) if bits != 16 else ""
    data = int(values, 2).to_bytes(2 * bits, "big") if values else np.array([0, white] * 8, "<u2").tobytes()
    tags = [(256, 4, 4), (257, 4, 4), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1), (278, 4, 4)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in [*tags, (279, 4, len(data))])
    header = b"II*\0" + struct.pack("<IH", 8, len(tags) + 1) + entries + bytes(4)
    content = header.ljust(200, b"\0") + data
    try:
        stored = to_raw(content, 8)
    except DecodeError as error:  # a depth that Pillow does not read
        assert bits in (10, 14) and "no image of a format that is read" in str(error)
        return
    assert sorted(set(stored.content)) == [0, 255]


@pytest.mark.parametrize(("frame", "bits"), [(0xC0, 12), (0xC1, 12), (0xC2, 12), (0xC3, 16)])
def test_jpegs_of_other_bit_depths_are_refused_with_the_remedy(frame: int, bits: int) -> None:
    content = bytearray(encode(picture()))
    start = content.index(b"\xff\xc0")
    content[start + 1], content[start + 4] = frame, bits
    for read in (functools.partial(to_jpeg, max_side=100), functools.partial(to_raw, max_side=100), check):
        with pytest.raises(DecodeError, match=f"a JPEG of {bits} bits per sample: convert it to 8 bits"):
            read(bytes(content))
    assert keep_unchanged([bytes(content)], 100) == [None]


@pytest.mark.parametrize("kept", [2, 20, 100, 300])
def test_a_jpeg_that_ends_in_its_header_is_not_taken_for_another_format(kept: int) -> None:
    for read in (to_jpeg, to_raw):
        with pytest.raises(DecodeError, match=r"truncated|Truncated"):
            read(encode(picture())[:kept], 100)


def test_memory_that_is_short_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", exhausted)
    with pytest.raises(MemoryError):
        to_jpeg(encode(picture(), "PNG"), 100)


def test_odd_metadata_and_previews_are_no_damage() -> None:
    good = encode(picture())
    exif = b"Exif\0\0no such thing as a tag"
    content = good[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + good[2:]
    assert to_jpeg(content, 100).content == content
    with_preview = encode(picture(), "MPO", save_all=True, append_images=[picture(15, 20)])
    assert to_jpeg(with_preview, 100).content == with_preview


def test_every_real_photograph_keeps_its_pixels(shared: Path) -> None:
    with tarfile.open(shared / "data" / "imagenet-sample.tar") as archive:
        contents = [archive.extractfile(member).read() for member in archive if member.isfile()]  # type: ignore[union-attr]
    assert len(contents) == 58
    for content in contents:
        stored = to_jpeg(content, 500)
        with Image.open(io.BytesIO(content)) as image:
            assert stored.untouched == (max(image.size) <= 500)
            fitted = image.convert("RGB").resize((stored.width, stored.height), Image.Resampling.LANCZOS)
        if stored.untouched:
            assert stored.content == content
            continue
        with Image.open(io.BytesIO(stored.content)) as image:
            error = np.asarray(image, np.float64) - np.asarray(fitted)
        assert 10 * np.log10(255**2 / np.mean(error**2)) > 32  # what encoding loses included; dB
