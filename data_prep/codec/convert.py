"""Converts image files to their stored form: a JPEG of bounded size that decodes without warnings, or raw pixels."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin, TiffImagePlugin

from data_prep.codec import decode
from data_prep.codec.decode import DecodeError, Severity
from data_prep.codec.jpeg_header import START_OF_IMAGE, JpegHeader, read_header
from data_prep.format.beton import JPEG, RAW

QUALITY = 95
ORIENTATION = 0x0112  # the EXIF tag of a camera's orientation; 1 is upright
_BITS_PER_SAMPLE = 0x0102  # the tag of a TIFF
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_REDUCTION = 8
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read, by Pillow's names. Others are never tried: for some, Pillow starts programs."""
SUFFIXES = frozenset(
    f".{name}"
    for names in ("jpg jpeg jpe jfif", "png apng", "webp", "gif", "bmp dib", "tif tiff", "ppm pgm pbm pnm", "jp2 j2k")
    for name in [*names.split(), "avif"]
)
"""Suffixes of files of these formats, in lower case."""
WHITES = (1.0, 255.0, 65535.0, 2.0**32 - 1)
"""What white may be in images of floating-point numbers or of 32 bits."""
MOST_SCANS, MOST_BYTES = 100, 10**9
"""Limits of progressive JPEGs: a few kilobytes may ask for hours, or for all memory."""
_SCAN = b"\xff\xda"
RESAMPLING = "triangle, antialiased"
"""How images are shrunk, as the manifest calls it."""
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
    bytes. Every other image is turned upright, converted to RGB (transparency on white, more bits to 8), shrunk to
    `max_side` (keeping its aspect ratio) and encoded.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    with _explained(), _open(content) as image:
        if _is_plain_jpeg(image) and _turn(image) is None and max(image.size) <= max_side:
            header = _keep(check, content)
            if header and header.common:
                return StoredImage(content, JPEG, header.height, header.width, untouched=True)
        shrunk = _shrunk(image, content, max_side)
        buffer = io.BytesIO()
        shrunk.save(buffer, "JPEG", quality=quality, subsampling=_subsampling(image))
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
    try:
        image = Image.open(io.BytesIO(content), formats=_readable_formats())
    except Image.UnidentifiedImageError:
        if content.startswith(START_OF_IMAGE):
            read_header(content)  # says why this JPEG is not read
        raise
    if image.format in ("JPEG", "MPO") and "progressive" in image.info:
        # What `_decode.c` limits, for those that Pillow decodes, too.
        if (scans := content.count(_SCAN)) > MOST_SCANS:
            raise DecodeError(f"it has {scans} scans, more than the {MOST_SCANS} that are read: save it again")
        if (needed := 2 * image.width * image.height * len(image.getbands())) > MOST_BYTES:
            raise DecodeError(
                f"it is progressive and needs {needed / 1e9:.1f} GB to decode: save it again, as baseline"
            )
    return image


@functools.cache
def _readable_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # some are there only if Pillow was built with them


@contextmanager
def _explained() -> Iterator[None]:
    """Turns any exception of Pillow's readers, which a damaged file may cause, into a DecodeError."""
    try:
        yield
    except (DecodeError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(f"it is no image of a format that is read: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        pixels, most = (f"{int(number):,}" for number in re.findall(r"\d+", str(error))[:2])
        raise DecodeError(f"it has {pixels} pixels, more than the {most} that are read: shrink it") from None
    except Exception as error:
        raise DecodeError(str(error) or type(error).__name__) from None


def _plain_header(content: bytes, max_side: int) -> JpegHeader | None:
    """The header of a JPEG that may keep its bytes, judged by the header alone; else None."""
    try:
        header = read_header(content)
    except DecodeError:
        return None
    fits = header.common and header.components in (1, 3) and max(header[:2]) <= max_side
    return header if fits and not header.exif else None


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")  # MPO: a JPEG with a preview behind it


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The transposition that turns a loaded image upright, by its EXIF data (in a TIFF, by its tag); what XMP metadata
    say of it is not obeyed, as in browsers."""
    if image.format == "TIFF":
        return _TURNS.get(image.getexif().get(ORIENTATION, 1))
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        return _TURNS.get(exif.get(ORIENTATION, 1))
    except Exception:  # damaged metadata of an image that is whole
        return None


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


def _subsampling(image: Image.Image) -> int:
    """Of colors: 4:4:4 (0), or as in a JPEG that is stored again."""
    return max(0, JpegImagePlugin.get_sampling(image)) if isinstance(image, JpegImagePlugin.JpegImageFile) else 0


def _shrunk(image: Image.Image, content: bytes, max_side: int) -> Image.Image:
    """The image, upright, RGB, with sides of at most `max_side`, however it was stored: resized by a triangular filter
    that is as wide as a pixel of the result, as torchvision does with `antialias=True`."""
    decoded = None
    if _is_plain_jpeg(image):
        decoded = _keep(lambda jpeg: _decode_reduced(jpeg, max_side), content)
    upright = Image.fromarray(decoded) if decoded is not None else _by_pillow(image)
    turn = _turn(image)
    final = _final_size(image.size, max_side)
    if upright.size != final:
        upright = upright.resize(final, Image.Resampling.BILINEAR)
    return upright if turn is None else upright.transpose(turn)


def _final_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    share = min(1.0, max_side / max(size))
    return max(1, round(share * size[0])), max(1, round(share * size[1]))


def _decode_reduced(jpeg: bytes, max_side: int) -> np.ndarray:
    """The pixels of a JPEG, (height, width, 3) uint8; large images are reduced by averaging while they are decoded, to
    at least twice their final size.

    Raises:
        DecodeError: libjpeg reports a warning or an error.
    """
    header = read_header(jpeg)
    height, width = header[:2]
    by = 1
    while by < _REDUCTION and max(height, width) >= 4 * by * max_side and min(height, width) >= 2 * by:
        by *= 2
    content = np.frombuffer(jpeg, np.uint8)
    return _fill(content, JPEG, (height, width), (height // by, width // by), reduce=by > 1)


def _fill(content: np.ndarray, mode: int, size: tuple[int, ...], final: tuple[int, ...], reduce: bool) -> np.ndarray:
    jobs = np.zeros(1, decode.JOB)
    jobs[0] = decode.whole(content, mode, size[0], size[1])
    pixels = np.empty((1, *final, 3), np.uint8)
    for issue in decode.decode_batch(jobs, pixels, reduce):
        raise DecodeError(issue.message, issue.kind)
    return pixels[0]


def _by_pillow(image: Image.Image) -> Image.Image:
    """The image as Pillow decodes it, in RGB."""
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bits(np.asarray(image, np.float64), _white(image)))
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _white(image: Image.Image) -> float | None:
    """The value of white in a gray image of more than 8 bits; None if the file does not say it."""
    if ";16" not in image.mode:
        return None
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] if isinstance(image, TiffImagePlugin.TiffImageFile) else 16
    return float(2**bits - 1)


def _to_8_bits(values: np.ndarray, white: float | None) -> np.ndarray:
    """Gray values as uint8.

    Args:
        values: (H, W).
        white: value of white; by default the smallest of WHITES that no value exceeds, as files do not say it.

    Raises:
        DecodeError: a value is negative, not finite, or larger than all of WHITES.
    """
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > WHITES[-1]:
        raise DecodeError(f"its values reach from {values.min():g} to {values.max():g}, not from 0 to white")
    white = white or next(one for one in WHITES if values.max() <= one)
    return (values * (255 / white)).round().astype(np.uint8)
