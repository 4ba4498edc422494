"""Parts of pictures that show images: colors, fonts, text that fits, and images that fit into a frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from PIL import Image, ImageFont

INK, FAINT, PAPER, FRAME, ALARM = "#1c1f24", "#6a707a", "#ffffff", "#eef0f3", "#b3261e"
"""Text, details, background, what frames an image, and what is wrong. The background is opaque: a picture looks the
same on a light and on a dark page."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def font(size: int, bold: bool = False) -> Font:
    """DejaVu Sans, which comes with matplotlib and covers most alphabets; else Pillow's default font."""
    spec = importlib.util.find_spec("matplotlib")  # finds the folder and imports nothing
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, "mpl-data", "fonts", "ttf", f"DejaVuSans{'-Bold' * bold}.ttf")
        if path.exists():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def fit(picture: Image.Image, side: int) -> Image.Image:
    """An image scaled to fit into a square of `side` pixels; small images are enlarged by whole factors, exactly."""
    factor = side / max(picture.size)
    if factor >= 2:
        return picture.resize((picture.width * int(factor), picture.height * int(factor)), Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def wrap(text: str, written_in: Font, width: int, most: int) -> list[str]:
    """Text in lines of at most `width` pixels, at most `most` of them: broken between words, and within words that are
    longer than a line. What is left over becomes an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        if lines and written_in.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while written_in.getlength(word) > width and len(lines) <= most:
            fitting = next((end for end in range(len(word) - 1, 1, -1) if written_in.getlength(word[:end]) <= width), 1)
            lines.append(word[:fitting])
            word = word[fitting:]
        lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], shorten(f"{lines[most - 1]} {lines[most]}", written_in, width)]
    return lines


def shorten(text: str, written_in: Font, width: int) -> str:
    """Text that fits into `width` pixels; what is left out becomes an ellipsis."""
    if written_in.getlength(text) <= width:
        return text
    while text and written_in.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
