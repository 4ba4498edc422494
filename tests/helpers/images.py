"""Single image files for tests, encoded and decoded."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data_prep.codec.decode import decode
from data_prep.codec.jpeg_header import read_header


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height: int = 30, width: int = 40) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 255
    pixels[:, width // 2 :, 2] = 255
    return Image.fromarray(pixels)


def decoded(jpeg: bytes) -> np.ndarray:
    header = read_header(jpeg)
    out = np.empty((header.height, header.width, 3), np.uint8)
    decode(jpeg, header.height, header.width, out)
    return out
