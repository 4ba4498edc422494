"""An image file as it will be stored: a JPEG of bounded size that decodes without complaint, or its pixels."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data_prep import decoding
from data_prep.beton import JPEG, RAW
from data_prep.decoding import DecodeError, Kind

QUALITY = 95
ORIENTATION = 0x0112  # the EXIF tag of a camera's orientation; 1 is upright
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")
_REDUCTION = 8


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


def to_stored(content: bytes, max_side: int, quality: int = QUALITY) -> StoredImage:
    """Brings an image file of any kind that Pillow reads into a JPEG.

    An upright JPEG in gray or color whose sides are at most `max_side`, and which decodes without complaint, keeps its
    bytes. Everything else is turned upright, made RGB (transparency on white, 16 bits to 8), shrunk to `max_side`
    (keeping its proportions) and encoded anew.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    try:
        with _open(content) as image:
            header = _check_original(content) if _is_plain_jpeg(image) else None
            if header and _is_upright(image) and max(image.size) <= max_side:
                return StoredImage(content, JPEG, header.height, header.width, untouched=True)
            shrunk = _upright_rgb(image, max_side)
            buffer = io.BytesIO()
            shrunk.save(buffer, "JPEG", quality=quality)
            return StoredImage(buffer.getvalue(), JPEG, shrunk.height, shrunk.width, untouched=False)
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise _explain(error) from None


def to_raw(content: bytes, max_side: int) -> StoredImage:
    """Brings an image file of any kind that Pillow reads into pixels, upright, RGB, and shrunk to `max_side`.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    try:
        with _open(content) as image:
            if _is_plain_jpeg(image):
                _check_original(content)
            shrunk = _upright_rgb(image, max_side)
            return StoredImage(shrunk.tobytes(), RAW, shrunk.height, shrunk.width, untouched=False)
    except DecodeError:
        raise
    except Exception as error:
        raise _explain(error) from None


def check(jpeg: bytes) -> decoding.JpegHeader:
    """Reads all of a JPEG, but computes few of its pixels, which is half the work of decoding and fails alike.

    Raises:
        DecodeError: libjpeg has something to say about it, or it is CMYK.
    """
    header = decoding.read_header(jpeg)
    height, width = (max(1, side // _REDUCTION) for side in header[:2])
    content = np.frombuffer(jpeg, np.uint8)
    jobs = np.zeros(1, decoding.JOB)
    jobs[0] = (content.ctypes.data, content.size, JPEG, *header[:2], 0, 0, *header[:2], 0)
    for problem in decoding.fill(jobs, np.empty((1, height, width, 3), np.uint8)):
        raise DecodeError(problem.message, problem.kind)
    return header


def _open(content: bytes) -> Image.Image:
    if not content:
        raise DecodeError("the file is empty")
    return Image.open(io.BytesIO(content))


def _explain(error: Exception) -> DecodeError:
    if isinstance(error, Image.UnidentifiedImageError):
        return DecodeError("it is not an image")
    return DecodeError(str(error) or type(error).__name__)


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")  # MPO: a JPEG with a preview behind it


def _is_upright(image: Image.Image) -> bool:
    return image.getexif().get(ORIENTATION, 1) == 1


def _check_original(jpeg: bytes) -> decoding.JpegHeader | None:
    """The header of a JPEG that can be stored as it is; none if its pixels are whole, but training would complain.

    Pillow makes up the pixels that a damaged JPEG lacks, and says nothing: it must not get to see one.
    """
    try:
        return check(jpeg)
    except DecodeError as error:
        if error.kind is Kind.DAMAGE:
            raise
        return None


def _upright_rgb(image: Image.Image, max_side: int) -> Image.Image:
    size, filter_ = (max_side, max_side), Image.Resampling.LANCZOS
    if image.format in ("JPEG", "MPO"):  # shrinks while it decodes: a photograph of 30 megapixels needs little memory
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
