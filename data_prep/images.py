"""An image file as it will be stored: a JPEG of bounded size that decodes without complaint."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data_prep import decoding
from data_prep.decoding import DecodeError

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

    An upright JPEG in gray or color whose sides are at most `max_side` keeps its bytes, provided that they decode.
    Everything else is turned upright, made RGB (transparency on white, 16 bits to 8), shrunk to `max_side` (keeping its
    proportions) and encoded anew, at quality 95.

    Raises:
        DecodeError: it is not an image, or is damaged.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format == "JPEG" and _keeps(image, max_side):
                try:
                    return _check(content)
                except DecodeError:
                    pass  # something that Pillow may still forgive, such as stray bytes between segments
            return _check(_encode(_upright_rgb(image), max_side))
    except Image.UnidentifiedImageError:
        raise DecodeError("it is not an image") from None
    except DecodeError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise DecodeError(str(error) or type(error).__name__) from None


def _keeps(image: Image.Image, max_side: int) -> bool:
    upright = image.getexif().get(ORIENTATION, 1) == 1
    return upright and image.mode in ("L", "RGB") and max(image.size) <= max_side


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
