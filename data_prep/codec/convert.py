"""Converts image files to their stored form: a JPEG of bounded size that decodes without warnings, or raw pixels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps

from data_prep.codec import decode
from data_prep.codec.decode import DecodeError, Severity
from data_prep.codec.jpeg_header import JpegHeader, read_header
from data_prep.format.beton import JPEG, RAW

QUALITY = 95
ORIENTATION = 0x0112  # the EXIF tag of a camera's orientation; 1 is upright
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_REDUCTION = 8
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns an image upright, by its EXIF orientation."""

Result = TypeVar("Result")


class StoredImage(NamedTuple):
    """An image in its stored form."""

    content: bytes
    """A JPEG file, in gray or color; or (height × width × 3) uint8 pixels."""
    mode: int
    """JPEG or RAW: which of the two."""
    height: int
    width: int
    untouched: bool
    """The content is the JPEG file of the source, byte for byte."""


def keep_unchanged(contents: Sequence[bytes], max_side: int) -> list[StoredImage | None]:
    """The stored form of image files that keep their bytes; None for each that :func:`to_jpeg` has to convert.

    JPEG files keep their bytes if they are in gray or color, have no EXIF metadata and no side above `max_side`, and
    decode without warnings.
    """
    headers = {row: header for row, content in enumerate(contents) if (header := _plain_header(content, max_side))}
    jobs = np.zeros(len(headers), decode.JOB)
    for job, (row, header) in enumerate(headers.items()):
        jobs[job] = decode.whole(np.frombuffer(contents[row], np.uint8), JPEG, header.height, header.width)
    for row in [list(headers)[issue.row] for issue in decode.check(jobs)]:
        del headers[row]
    kept: list[StoredImage | None] = [None] * len(contents)
    for row, header in headers.items():
        kept[row] = StoredImage(contents[row], JPEG, header.height, header.width, untouched=True)
    return kept


def to_jpeg(content: bytes, max_side: int, quality: int = QUALITY) -> StoredImage:
    """Converts an image file of any format that Pillow reads to a JPEG.

    An upright JPEG in gray or color whose sides are at most `max_side`, and which decodes without warnings, keeps its
    bytes. Every other image is turned upright, converted to RGB (transparency on white, 16 bits to 8), shrunk to
    `max_side` (keeping its aspect ratio) and encoded.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    with _explained(), _open(content) as image:
        if _is_plain_jpeg(image) and _is_upright(image) and max(image.size) <= max_side:
            header = _keep(check, content)
            if header:
                return StoredImage(content, JPEG, header.height, header.width, untouched=True)
        shrunk = _shrunk(image, content, max_side)
        buffer = io.BytesIO()
        shrunk.save(buffer, "JPEG", quality=quality)
        return StoredImage(buffer.getvalue(), JPEG, shrunk.height, shrunk.width, untouched=False)


def to_raw(content: bytes, max_side: int) -> StoredImage:
    """Converts an image file of any format that Pillow reads to pixels: upright, RGB, shrunk to `max_side`.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    with _explained(), _open(content) as image:
        shrunk = _shrunk(image, content, max_side)
        return StoredImage(shrunk.tobytes(), RAW, shrunk.height, shrunk.width, untouched=False)


def check(jpeg: bytes) -> JpegHeader:
    """Reads a JPEG completely; returns its header.

    Raises:
        DecodeError: libjpeg reports a warning or an error, or the image is CMYK.
    """
    header = read_header(jpeg)
    jobs = np.zeros(1, decode.JOB)
    jobs[0] = decode.whole(np.frombuffer(jpeg, np.uint8), JPEG, header.height, header.width)
    for issue in decode.check(jobs):
        raise DecodeError(issue.message, issue.kind)
    return header


def _open(content: bytes) -> Image.Image:
    if not content:
        raise DecodeError("the file is empty")
    return Image.open(io.BytesIO(content))


@contextmanager
def _explained() -> Iterator[None]:
    """Turns any exception of Pillow's readers, which a damaged file may cause, into a DecodeError."""
    try:
        yield
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError("it is not an image") from None
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from None


def _plain_header(content: bytes, max_side: int) -> JpegHeader | None:
    """The header of a JPEG that may keep its bytes, judged by the header alone; else None."""
    try:
        header = read_header(content)
    except DecodeError:
        return None
    return header if header.components in (1, 3) and max(header[:2]) <= max_side and not header.exif else None


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")  # MPO: a JPEG with a preview behind it


def _is_upright(image: Image.Image) -> bool:
    return image.getexif().get(ORIENTATION, 1) == 1


def _keep(function: Callable[[bytes], Result], jpeg: bytes) -> Result | None:
    """The result of `function`, which decodes a JPEG; None if it warns of anything but damage.

    Pillow fills in the missing pixels of a damaged JPEG without a warning, so it must not decode one.

    Raises:
        DecodeError: the JPEG is damaged.
    """
    try:
        return function(jpeg)
    except DecodeError as error:
        if error.kind is Severity.DAMAGE:
            raise
        return None


def _shrunk(image: Image.Image, content: bytes, max_side: int) -> Image.Image:
    """The image, upright, RGB, with sides of at most `max_side`."""
    if _is_plain_jpeg(image):
        pixels = _keep(lambda jpeg: _decode_shrunk(jpeg, max_side), content)
        if pixels is not None:
            turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
            decoded = Image.fromarray(pixels)
            return decoded if turn is None else decoded.transpose(turn)
    return _shrunk_by_pillow(image, max_side)


def _decode_shrunk(jpeg: bytes, max_side: int) -> np.ndarray:
    """The pixels of a JPEG, (height, width, 3) uint8, shrunk by averaging areas if a side exceeds `max_side`.

    Large images are reduced while they are decoded, to at least twice their final size.

    Raises:
        DecodeError: libjpeg reports a warning or an error.
    """
    header = read_header(jpeg)
    height, width = header[:2]
    share = min(1.0, max_side / max(height, width))
    final = tuple(max(1, round(share * side)) for side in (height, width))
    by = 1
    while by < _REDUCTION and min(height, width) > 4 * by * max(final):
        by *= 2
    content = np.frombuffer(jpeg, np.uint8)
    first = (height // by, width // by) if by > 1 else final
    pixels = _fill(content, JPEG, (height, width), first, reduce=by > 1)
    return pixels if by == 1 else _fill(pixels.ravel(), RAW, first, final, reduce=False)


def _fill(content: np.ndarray, mode: int, size: tuple[int, ...], final: tuple[int, ...], reduce: bool) -> np.ndarray:
    jobs = np.zeros(1, decode.JOB)
    jobs[0] = decode.whole(content, mode, size[0], size[1])
    pixels = np.empty((1, *final, 3), np.uint8)
    for issue in decode.decode_batch(jobs, pixels, reduce):
        raise DecodeError(issue.message, issue.kind)
    return pixels[0]


def _shrunk_by_pillow(image: Image.Image, max_side: int) -> Image.Image:
    size, filter_ = (max_side, max_side), Image.Resampling.LANCZOS
    if image.format in ("JPEG", "MPO"):  # shrinks while it decodes
        image.thumbnail(size, filter_)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.thumbnail(size, filter_)
    return image
