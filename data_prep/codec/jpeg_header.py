"""Size and color of a JPEG file, from its header alone."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from data_prep.codec.decode import Bytes, DecodeError

START_OF_IMAGE = b"\xff\xd8"
_START_OF_SCAN, _END_OF_IMAGE, _APPLICATION_1 = 0xDA, 0xD9, 0xE1
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are tables and a reserved marker
_COMMON_FRAMES = (0xC0, 0xC1, 0xC2)
"""Of Huffman codes: baseline, extended, progressive. Others are lossless, hierarchical or arithmetic."""
_FILL = 0xFFFF
_BITS = 8


class JpegHeader(NamedTuple):
    """Contents of a JPEG header."""

    height: int
    width: int
    components: int
    """1 is gray, 3 is color, 4 is CMYK (which is not decoded)."""
    common: bool
    """Whether every decoder reads it: Huffman codes, baseline or progressive."""
    exif: bool
    """Whether EXIF metadata precede the first scan; they may hold the orientation."""


def read_header(jpeg: Bytes) -> JpegHeader:
    """Height, width and components of a JPEG, from its header alone.

    Raises:
        DecodeError: it is not a JPEG, ends before its header does, or has other than 8 bits per sample.
    """
    if len(jpeg) == 0:
        raise DecodeError("it is empty")
    view = np.frombuffer(jpeg, np.uint8).data
    if view[:2] != START_OF_IMAGE:
        raise DecodeError("it does not begin like a JPEG")
    position, exif = 2, False
    frame: tuple[int, int, int, bool] | None = None
    while position + 10 <= len(view):
        marker, length = struct.unpack_from(">HH", view, position)
        if marker == _FILL:  # any number of bytes 0xFF may precede a marker
            position += 1
            continue
        kind = marker & 0xFF
        if marker >> 8 != 0xFF or kind in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if kind in _START_OF_FRAME:
            precision, height, width, components = struct.unpack_from(">BHHB", view, position + 4)
            if not height or not width:
                raise DecodeError(f"its JPEG header claims {height}×{width} pixels")
            if precision != _BITS:
                raise DecodeError(
                    f"it is a JPEG of {precision} bits per sample: convert it to {_BITS} bits, or to a PNG"
                )
            frame = frame or (height, width, components, kind in _COMMON_FRAMES)
        exif = exif or (kind == _APPLICATION_1 and view[position + 4 : position + 8] == b"Exif")
        position += 2 + length
    if frame:
        return JpegHeader(*frame, exif)
    raise DecodeError("its JPEG header is damaged or truncated")
