"""JPEG bytes to pixels, by FFCV's compiled library (libjpeg-turbo and OpenCV inside).

The library is called through ctypes without importing the ffcv package, which takes seconds and changes the number of
threads that torch computes with. ctypes gives up Python's global lock during a call: plain threads decode in parallel.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import importlib.util
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.errors import UserError

Bytes = bytes | np.ndarray

_START_OF_IMAGE = b"\xff\xd8"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # those three are tables and a reserved marker
_FILL = 0xFFFF


class DecodeError(Exception):
    """These bytes are not a JPEG image that decodes without complaint; says why."""


class JpegHeader(NamedTuple):
    """What a JPEG file says of itself."""

    height: int
    width: int
    components: int
    """1 is gray, 3 is color, 4 is CMYK (which the library does not decode)."""


def read_header(jpeg: Bytes) -> JpegHeader:
    """Height, width and components of a JPEG, from its header alone.

    Raises:
        DecodeError: it is not a JPEG, or ends before its header does.
    """
    view = np.frombuffer(jpeg, np.uint8).data
    if view[:2] != _START_OF_IMAGE:
        raise DecodeError("it does not begin like a JPEG")
    position = 2
    while position + 10 <= len(view):
        marker, length = struct.unpack_from(">HH", view, position)
        if marker == _FILL:  # any number of bytes 0xFF may precede a marker
            position += 1
            continue
        kind = marker & 0xFF
        if marker >> 8 != 0xFF or kind in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if kind in _START_OF_FRAME:
            return JpegHeader(*struct.unpack_from(">HHB", view, position + 5))
        position += 2 + length
    raise DecodeError("its JPEG header is damaged or cut off")


def decode(jpeg: Bytes, height: int, width: int, out: np.ndarray) -> None:
    """Decodes a JPEG of `height` × `width` pixels into `out`, (height, width, 3) uint8, red green blue.

    Raises:
        DecodeError: the bytes are damaged in a way that can be noticed, cut off, CMYK, or of another size. What is then
            in `out` is worthless.
    """
    _check_pixels(out, height, width)
    header = read_header(jpeg)
    if header[:2] != (height, width):  # the library would fill a part of `out` and call that success
        raise DecodeError(f"it has {header.height}×{header.width} pixels instead of {height}×{width}")
    source = np.frombuffer(jpeg, np.uint8)
    status = _library().imdecode(
        source.ctypes.data, source.size, height, width, out.ctypes.data, height, width, 0, 0, 1, 1, False, False
    )
    if status != 0:  # an error, or a warning: pixels are then made up for those that the data lack
        raise DecodeError(_last_complaint())


def resize_crop(source: np.ndarray, top: int, left: int, height: int, width: int, out: np.ndarray) -> None:
    """Resizes the rectangle `height` × `width` at (`top`, `left`) of `source` to fill `out`, by averaging areas.

    Args:
        source: (H, W, 3) uint8.
        out: (h, w, 3) uint8.

    Raises:
        ValueError: the rectangle is empty or leaves the image.
    """
    _check_pixels(source, *source.shape[:2])
    _check_pixels(out, *out.shape[:2])
    bottom, right = top + height, left + width
    if not (0 <= top < bottom <= source.shape[0] and 0 <= left < right <= source.shape[1]):  # C++ would end the process
        raise ValueError(f"rectangle {top}:{bottom}, {left}:{right} in an image of {source.shape[:2]} pixels")
    _library().resize(
        0, source.ctypes.data, *source.shape[:2], top, bottom, left, right, out.ctypes.data, *out.shape[:2]
    )


def _check_pixels(pixels: np.ndarray, height: int, width: int) -> None:
    """The library gets a bare address, so the memory behind it must be what it expects."""
    fits = pixels.shape == (height, width, 3) and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    if not fits or pixels.size == 0:
        raise ValueError(f"pixels must be a contiguous ({height}, {width}, 3) uint8, not {pixels.shape} {pixels.dtype}")


def _last_complaint() -> str:
    """What libjpeg-turbo said last in this thread: its first warning, or its error."""
    message: bytes = _library().tjGetErrorStr()
    return message.decode(errors="replace")


@functools.cache
def _library() -> ctypes.CDLL:
    """FFCV's compiled library, with the types of the functions used here.

    Raises:
        UserError: FFCV is not installed.
    """
    library = ctypes.CDLL(str(_find_library()))
    sizes, flags = [ctypes.c_uint32] * 2, [ctypes.c_bool] * 2
    # source, its size; height, width; destination; height, width and place of a crop, scale as a fraction; crop?, flip?
    library.imdecode.argtypes = [ctypes.c_void_p, ctypes.c_uint64, *sizes, ctypes.c_void_p, *sizes * 3, *flags]
    library.imdecode.restype = ctypes.c_int
    # unused; source, height, width; first and last row, first and last column; destination, height, width
    library.resize.argtypes = [ctypes.c_int64] * 11
    library.resize.restype = None
    library.tjGetErrorStr.argtypes = []  # of libjpeg-turbo, which FFCV's library loads
    library.tjGetErrorStr.restype = ctypes.c_char_p
    return library


def _find_library() -> Path:
    spec = importlib.util.find_spec("ffcv")  # finds the folder and imports nothing
    for folder in (spec and spec.submodule_search_locations) or ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder, f"_libffcv{suffix}")
            if path.exists():
                return path
    raise UserError("FFCV's compiled library is missing: install it with 'make setup' or 'pip install ffcv'")
