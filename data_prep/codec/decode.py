"""Stored images to pixels: the Python side of `_pixels.c`.

A table of jobs (which bytes, which rectangle, mirrored or not) is decoded, cropped and resized in one call that gives
up Python's global lock: plain threads decode in parallel. What libjpeg says of a file is never lost, and an image that
has a problem is black: no pixel of another image can take its place.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from data_prep.format.beton import JPEG

try:
    from data_prep.codec import _pixels
except ImportError as _error:  # pragma: no cover
    raise ImportError(
        f"the compiled module data_prep.codec._pixels is missing ({_error}): install with 'make setup' or "
        "'pip install -e .'"
    ) from None

Bytes = bytes | np.ndarray

JOB = np.dtype(
    [
        ("address", np.uint64),
        ("size", np.uint64),
        *((name, np.int32) for name in ("mode", "height", "width")),
        *((name, np.int32) for name in ("top", "left", "crop_height", "crop_width", "mirrored")),
    ],
    align=True,
)
"""One image to decode: its bytes in memory and how many; JPEG or RAW and its size in pixels; the rectangle that is to
fill the output; whether to mirror it left to right. Laid out as Job in `_decode.h`."""

_LAYOUT = tuple((name, field[1], field[0].itemsize) for name, field in (JOB.fields or {}).items())
if getattr(_pixels, "JOB_LAYOUT", _LAYOUT) != _LAYOUT or getattr(_pixels, "JOB_SIZE", JOB.itemsize) != JOB.itemsize:
    raise ImportError(
        "the compiled module data_prep.codec._pixels was built from other sources: install again with 'make setup' or "
        "'pip install -e .'"
    )


class Severity(IntEnum):
    """How bad what libjpeg says of a file is."""

    WARNING = 1
    """The file's description of itself is odd, but all pixels are there."""
    DAMAGE = 2
    """Some pixels are not those of the picture: the data are damaged or cut off."""
    FAILURE = 3
    """There are no pixels."""


class DecodeIssue(NamedTuple):
    """What is wrong with one image of a table."""

    row: int
    """Its row in the table."""
    kind: Severity
    message: str


class DecodeError(Exception):
    """These bytes are not a JPEG image that decodes without complaint; says why."""

    def __init__(self, message: str, kind: Severity = Severity.FAILURE) -> None:
        super().__init__(message)
        self.kind = kind


def decode_batch(jobs: np.ndarray, out: np.ndarray, reduce: bool = True) -> list[DecodeIssue]:
    """Decodes, crops and resizes images into `out`; those that have a problem are black there.

    Resizing averages areas where it shrinks, and interpolates linearly where it enlarges.

    Args:
        jobs: (n,) of type JOB. The caller keeps the memory that it points to alive.
        out: (n, height, width, 3) uint8, contiguous; red green blue.
        reduce: decode a JPEG at 1/2, 1/4 or 1/8 of its size where the crop stays at least as large as the output.

    Returns:
        The problems, in the order of the rows.

    Raises:
        ValueError: a rectangle is empty or leaves its image, bytes are missing, or `out` has another shape.
    """
    fits = jobs.dtype == JOB and out.dtype == np.uint8 and out.shape == (len(jobs), *out.shape[1:3], 3)
    if not (fits and out.flags.c_contiguous):
        raise ValueError(f"jobs fill contiguous (n, height, width, 3) uint8, not {jobs.dtype} {out.shape} {out.dtype}")
    issues = _pixels.fill(np.ascontiguousarray(jobs), out, out.shape[1], out.shape[2], reduce)
    return [DecodeIssue(row, Severity(kind), message) for row, kind, message in issues]


def check(jobs: np.ndarray) -> list[DecodeIssue]:
    """Finds the problems that :func:`decode_batch` would find in whole images, at several times its speed.

    Of a JPEG the codes are read from the first to the last, but no pixels are computed from them.

    Args:
        jobs: as for :func:`decode_batch`.

    Raises:
        ValueError: as for :func:`decode_batch`.
    """
    if jobs.dtype != JOB:
        raise ValueError(f"{jobs.dtype} are no jobs")
    return [
        DecodeIssue(row, Severity(kind), message) for row, kind, message in _pixels.check(np.ascontiguousarray(jobs))
    ]


def whole(content: np.ndarray, mode: int, height: int, width: int) -> tuple[int, ...]:
    """The job, of type JOB, of decoding all of an image whose bytes are `content`."""
    return (content.ctypes.data, content.size, mode, height, width, 0, 0, height, width, 0)


def decode(jpeg: Bytes, height: int, width: int, out: np.ndarray) -> None:
    """Decodes a JPEG of `height` × `width` pixels into `out`, (height, width, 3) uint8, red green blue.

    Raises:
        DecodeError: the bytes are damaged in a way that can be noticed, cut off, CMYK, or of another size. `out` is
            black then.
        ValueError: `out` has another shape or type.
    """
    if len(jpeg) == 0:
        raise DecodeError("it is empty")
    content = np.frombuffer(jpeg, np.uint8)
    jobs = np.zeros(1, JOB)
    jobs[0] = whole(content, JPEG, height, width)
    if out.shape != (height, width, 3):
        raise ValueError(f"an image of ({height}, {width}, 3) does not fit into {out.shape}")
    for issue in decode_batch(jobs, out[None], reduce=False):
        raise DecodeError(issue.message, issue.kind)
