"""JPEG files that are damaged in many ways, and what the decoder must make of each of them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import numpy as np
from PIL import Image

from data_prep.codec.decode import JOB, DecodeError, check, decode_batch, whole
from data_prep.codec.jpeg_header import read_header
from data_prep.format.beton import JPEG

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

MOST_PIXELS = 2**20
"""Larger images are described but not decoded: a damaged size must not make one case take minutes."""
GUARD = 64
"""Bytes before and behind an output that must not change."""

OPTIONS: tuple[dict[str, object], ...] = (
    {"subsampling": "4:2:0"},
    {"subsampling": "4:2:2"},
    {"subsampling": "4:4:4", "quality": 100},
    {"progressive": True},
    {"progressive": True, "subsampling": "4:2:0", "quality": 30},
    {"optimize": True, "quality": 40},
    {"restart_marker_blocks": 3},
    {"restart_marker_rows": 1, "subsampling": "4:2:0"},
    {"exif": b"Exif\0\0II*\0"},
    {"comment": b"a comment"},
)
SIZES = ((1, 1), (8, 9), (17, 300), (61, 83), (120, 64))


def seeds() -> list[np.ndarray]:
    """Sound JPEG files of all kinds, each (bytes,) uint8."""
    random = np.random.default_rng(0)
    files = []
    for (height, width), options in itertools.product(SIZES, OPTIONS):
        noise = Image.fromarray(random.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        files.append(_encode(image, options))
    files += [_encode(image.convert(mode), {"progressive": mode == "L"}) for mode in ("L", "CMYK")]
    return files


def _encode(image: Image.Image, options: dict[str, object]) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def damaged(files: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """One of `files`, changed in up to four ways."""
    content = files[random.integers(len(files))]
    for _ in range(random.integers(0, 5)):
        content = _CHANGES[random.integers(len(_CHANGES))](content, random)
    if random.random() < 0.1:
        content = _splice(content, files[random.integers(len(files))], random)
    return content.copy()


def _place(content: np.ndarray, random: np.random.Generator) -> int:
    """A place in the file, in the first 700 bytes (the header) half of the time."""
    return int(random.integers(0, min(len(content), 700) if random.random() < 0.5 else len(content)))


def _flip(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    changed = content.copy()
    for _ in range(random.integers(1, 8)):
        changed[_place(content, random)] ^= 1 << random.integers(8)
    return changed


def _overwrite(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    changed, place = content.copy(), _place(content, random)
    length = int(random.integers(1, 9))
    changed[place : place + length] = random.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, random.integers(256)])
    return changed


def _truncate(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return content[: max(1, _place(content, random))]


def _delete(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    place = max(1, _place(content, random))
    return np.concatenate([content[:place], content[place + random.integers(1, 65) :]])


def _repeat(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    place = _place(content, random)
    return np.concatenate([content[: place + random.integers(1, 65)], content[place:]])


def _insert_marker(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    place = _place(content, random)
    payload = random.integers(0, 256, random.integers(0, 20)).astype(np.uint8)
    length = len(payload) + 2 if random.random() < 0.7 else int(random.integers(0, 2**16))
    marker = np.array([0xFF, random.integers(0xC0, 0x100), length >> 8, length & 0xFF], np.uint8)
    return np.concatenate([content[:place], marker, payload, content[place:]])


def _insert_restarts(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    segment = np.array([0xFF, 0xDD, 0, 4, 0, random.integers(0, 5)], np.uint8)
    return np.concatenate([content[:2], segment, content[2:]])


def _change_frame(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Changes what the frame's header says: kind, precision, size, or a component's number, sampling or table."""
    changed = content.copy()
    for place in np.flatnonzero((content[:-1] == 0xFF) & np.isin(content[1:], [0xC0, 0xC1, 0xC2]))[:1]:
        way = random.integers(4)
        if way == 0:
            changed[place + 1] = random.choice([0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA])
        elif way == 1:
            sides = random.choice([0, 1, 7, 8, 9, 64, 300, 65500, 65535], 2)
            values = np.array([sides[0] >> 8, sides[0] & 0xFF, sides[1] >> 8, sides[1] & 0xFF], np.uint8)
            changed[place + 5 : place + 9] = values[: len(changed[place + 5 : place + 9])]
        else:
            at = place + (9 if way == 2 else 4) + int(random.integers(0, 12))
            changed[at : at + 1] = random.choice([0, 1, 2, 3, 4, 0x11, 0x12, 0x21, 0x22, 0x41, 0x44, 0xFF])
    return changed


def _change_scan(content: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Changes a byte of a scan's header: its components, tables, or part of the spectrum."""
    changed = content.copy()
    places = np.flatnonzero((content[:-1] == 0xFF) & (content[1:] == 0xDA))
    if len(places):
        at = int(random.choice(places)) + 4 + int(random.integers(0, 11))
        changed[at : at + 1] = random.choice([0, 1, 2, 3, 4, 0x01, 0x10, 0x11, 0x22, 0x3F, 0x40, 0xFF])
    return changed


def _splice(content: np.ndarray, other: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.concatenate([content[: max(1, _place(content, random))], other[_place(other, random) :]])


_CHANGES: tuple[Change, ...] = (
    _flip,
    _overwrite,
    _truncate,
    _delete,
    _repeat,
    _insert_marker,
    _insert_restarts,
    _change_frame,
    _change_scan,
)


class JpegFuzzer:
    """Decodes damaged files, each between two sound ones."""

    def __init__(self) -> None:
        self._files = seeds()
        self._neighbor = self._files[3]
        self._size = read_header(self._neighbor)[:2]

    def case(self, random: np.random.Generator) -> None:
        """Makes a damaged file and decodes it.

        Raises:
            AssertionError: an image with an issue is not black, a neighbor's pixels changed, bytes outside of the
                output changed, or the check found something else than decoding.
        """
        content = damaged(self._files, random)
        try:
            height, width = read_header(content)[:2]
        except DecodeError:
            height, width = self._size
        if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
            return
        self._crop(content, height, width, random)
        if height * width <= MOST_PIXELS // 8:
            jobs = np.zeros(1, JOB)
            jobs[0] = whole(content, JPEG, height, width)
            issues = decode_batch(jobs, np.empty((1, height, width, 3), np.uint8), reduce=False)
            found = check(jobs)
            assert found == issues, (found, issues)

    def _crop(self, content: np.ndarray, height: int, width: int, random: np.random.Generator) -> None:
        crop_height, crop_width = (int(random.integers(1, side + 1)) for side in (height, width))
        top, left = int(random.integers(0, height - crop_height + 1)), int(random.integers(0, width - crop_width + 1))
        exact = random.random() < 0.3 and crop_height * crop_width <= MOST_PIXELS // 16
        out_height, out_width = (crop_height, crop_width) if exact else random.integers(1, 70, 2).tolist()
        jobs = np.zeros(3, JOB)
        jobs[[0, 2]] = np.array([whole(self._neighbor, JPEG, *self._size)], JOB)
        place = (height, width, top, left, crop_height, crop_width, random.integers(2))
        jobs[1] = (content.ctypes.data, content.size, JPEG, *place)
        bytes_ = 9 * out_height * out_width
        memory = np.full(bytes_ + 2 * GUARD, 0xA5, np.uint8)
        out = memory[GUARD:-GUARD].reshape(3, out_height, out_width, 3)
        issues = decode_batch(jobs, out, reduce=bool(random.integers(2)))
        assert [issue.row for issue in issues] in ([], [1]), issues
        assert not issues or not out[1].any(), "an image with an issue is not black"
        assert np.array_equal(out[0], out[2]), "the image before changed the next one"
        assert (memory[:GUARD] == 0xA5).all() and (memory[-GUARD:] == 0xA5).all(), "bytes outside of the output"
