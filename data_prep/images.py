"""An image file as it will be stored: a JPEG of bounded size that decodes without complaint."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data_prep import decoding
from data_prep.decoding import DecodeError, Kind

QUALITY = 95
ORIENTATION = 0x0112  # the EXIF tag of a camera's orientation; 1 is upright
_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


class StoredImage(NamedTuple):
    """The JPEG file of an image, gray or in color, with its size in pixels."""

    jpeg: bytes
    height: int
    width: int


def to_stored(content: bytes, max_side: int) -> StoredImage:
    """Brings an image file of any kind that Pillow reads into the form that is stored.

    An upright JPEG in gray or color whose sides are at most `max_side` keeps its bytes. Everything else is turned
    upright, made RGB (transparency on white, 16 bits to 8), shrunk to `max_side` (keeping its proportions) and encoded
    anew, at quality 95.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            stored = _check_original(content) if _is_plain_jpeg(image) else None
            if stored and _is_upright(image) and max(image.size) <= max_side:
                return stored
            return _check(_encode(_upright_rgb(image), max_side))
    except Image.UnidentifiedImageError:
        raise DecodeError("it is not an image") from None
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise DecodeError(str(error) or type(error).__name__) from None


def _is_plain_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB")  # MPO: a JPEG with a preview behind it


def _is_upright(image: Image.Image) -> bool:
    return image.getexif().get(ORIENTATION, 1) == 1


def _check_original(jpeg: bytes) -> StoredImage | None:
    """The JPEG as it is; nothing if it is whole but of a kind that the library does not read.

    Pillow makes up the pixels that a damaged JPEG lacks, and says nothing: it must not get to see one.
    """
    try:
        return _check(jpeg)
    except DecodeError as error:
        if error.kind is Kind.DAMAGE:
            raise
        return None


def _check(jpeg: bytes) -> StoredImage:
    """Decodes a JPEG with what training will decode it with."""
    header = decoding.read_header(jpeg)
    decoding.decode(jpeg, header.height, header.width, np.empty((header.height, header.width, 3), np.uint8))
    return StoredImage(jpeg, header.height, header.width)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _encode(image: Image.Image, max_side: int) -> bytes:
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
