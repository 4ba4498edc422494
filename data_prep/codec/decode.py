"""Decodes stored images to pixels: the Python side of `_pixels.c`.

A table of jobs (bytes, rectangle, mirrored or not) is decoded, cropped and resized in one call that releases the GIL:
threads decode in parallel. Every warning and error of libjpeg is reported; an image that has one is black.
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
if getattr(_pixels, "JOB_LAYOUT", None) != _LAYOUT or getattr(_pixels, "JOB_SIZE", None) != JOB.itemsize:
    raise ImportError(
        "the compiled module data_prep.codec._pixels was built from other sources: install again with 'make setup' or "
        "'pip install -e .'"
    )


class Severity(IntEnum):
    """Severity of a warning or error of libjpeg."""

    WARNING = 1
    """The header or metadata are unusual, but every pixel was decoded."""
    DAMAGE = 2
    """Some pixels are wrong or missing: the data are damaged or truncated."""
    FAILURE = 3
    """Nothing was decoded."""


class DecodeIssue(NamedTuple):
    """A problem with one image of a table of jobs."""

    row: int
    """Its row in the table."""
    kind: Severity
    message: str


class DecodeError(Exception):
    """An image cannot be decoded, or only with warnings; the message says why."""

    def __init__(self, message: str, kind: Severity = Severity.FAILURE) -> None:
        super().__init__(message)
        self.kind = kind


def decode_batch(jobs: np.ndarray, out: np.ndarray, reduce: bool = True) -> list[DecodeIssue]:
    """Decodes, crops and resizes images into `out`; images with a problem are black there.

    Resizing averages areas where it shrinks, and interpolates linearly where it enlarges.

    Args:
        jobs: (n,) of type JOB. The caller keeps alive the memory that they point to.
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
    """Finds the problems that :func:`decode_batch` finds in whole images, several times faster.

    The entropy-coded data of a JPEG are read completely, but no pixels are computed from them.

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
    """The job, of type JOB, that decodes all of an image with the bytes `content`."""
    return (content.ctypes.data, content.size, mode, height, width, 0, 0, height, width, 0)


def decode(jpeg: Bytes, height: int, width: int, out: np.ndarray) -> None:
    """Decodes a JPEG of `height` × `width` pixels into `out`, (height, width, 3) uint8, red green blue.

    Raises:
        DecodeError: libjpeg warns of damage or truncation, the image is CMYK, or has another size. `out` is black then.
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
