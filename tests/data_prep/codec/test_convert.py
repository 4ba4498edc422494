"""Conversion of image files: which keep their bytes, what the others become, and which are refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.codec.convert import to_jpeg
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
