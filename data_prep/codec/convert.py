"""An image file as it will be stored: a JPEG of bounded size that decodes without complaint, or its pixels."""

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
"""What makes a picture upright, by its EXIF orientation."""

Result = TypeVar("Result")


class StoredImage(NamedTuple):
    """An image in the form that is stored."""

    content: bytes
    """A JPEG file, gray or in color; or (height × width × 3) uint8 pixels."""
    mode: int
    """JPEG or RAW: which of the two."""
    height: int
    width: int
    untouched: bool
    """The JPEG file is the one that came in."""


def keep_unchanged(contents: Sequence[bytes], max_side: int) -> list[StoredImage | None]:
    """Of several image files, those that plainly keep their bytes; None for each that has to be looked into.

    They are JPEGs in gray or color, without a camera's notes, whose sides are at most `max_side` and which decode
    without complaint.
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
    """Brings an image file of any kind that Pillow reads into a JPEG.

    An upright JPEG in gray or color whose sides are at most `max_side`, and which decodes without complaint, keeps its
    bytes. Everything else is turned upright, made RGB (transparency on white, 16 bits to 8), shrunk to `max_side`
    (keeping its proportions) and encoded anew.

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
    """Brings an image file of any kind that Pillow reads into pixels, upright, RGB, and shrunk to `max_side`.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    with _explained(), _open(content) as image:
        shrunk = _shrunk(image, content, max_side)
        return StoredImage(shrunk.tobytes(), RAW, shrunk.height, shrunk.width, untouched=False)


def check(jpeg: bytes) -> JpegHeader:
    """Reads all of a JPEG, and returns its header.

    Raises:
        DecodeError: libjpeg has something to say about it, or it is CMYK.
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
    """Turns whatever Pillow's readers raise when they stumble over a damaged file into a DecodeError."""
    try:
        yield
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError("it is not an image") from None
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from None


def _plain_header(content: bytes, max_side: int) -> JpegHeader | None:
    """The header of a JPEG that may keep its bytes, as far as a header tells."""
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
    """What our own decoder makes of a JPEG; none if the pixels are whole, but it complains.

    Pillow makes up the pixels that a damaged JPEG lacks, and says nothing: it must not get to see one.
    """
    try:
        return function(jpeg)
    except DecodeError as error:
        if error.kind is Severity.DAMAGE:
            raise
        return None


def _shrunk(image: Image.Image, content: bytes, max_side: int) -> Image.Image:
    """The picture, upright, RGB, with sides of at most `max_side`."""
    if _is_plain_jpeg(image):
        pixels = _keep(lambda jpeg: _decode_shrunk(jpeg, max_side), content)
        if pixels is not None:
            turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
            decoded = Image.fromarray(pixels)
            return decoded if turn is None else decoded.transpose(turn)
    return _shrunk_by_pillow(image, max_side)


def _decode_shrunk(jpeg: bytes, max_side: int) -> np.ndarray:
    """The pixels of a JPEG, (height, width, 3) uint8, averaged over areas where they are too many.

    A photograph of 30 megapixels is reduced while it is decoded, to at least twice its final size.

    Raises:
        DecodeError: libjpeg has something to say about it.
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
