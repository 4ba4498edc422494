"""A sheet of images, each with a name and a line or two below it: what a network was fed, and what it confused."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_prep.common.errors import printable
from data_prep.maintain.drawing import ALARM, FAINT, FRAME, INK, PAPER, Font, fit, font, wrap

CELL, GAP, MARGIN, LINE = 192, 18, 32, 17
"""In pixels: an image's frame, what is between two, what is around all, and the height of a line of text."""
COLUMNS = 6
LONGEST, MOST_LINES = 300, 4
"""Characters of a text that are considered, and lines of one text."""


class Tile(NamedTuple):
    """An image with its texts."""

    pixels: np.ndarray
    """(H, W, 3) uint8."""
    name: str
    detail: str
    wrong: str = ""
    """What is wrong with it, if anything."""


def draw(title: str, subtitle: str, tiles: Sequence[Tile]) -> bytes:
    """The sheet, as PNG. Images up to CELL pixels are enlarged by whole factors, exactly; larger ones are scaled down.
    Texts are wrapped, and rows are as high as their texts."""
    large, plain = font(22, bold=True), font(14)
    columns = min(COLUMNS, max(3, len(tiles)))
    width = columns * CELL + (columns - 1) * GAP
    heading = wrap(title, large, width, 2), wrap(subtitle, plain, width, 4)
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    texts = [[_texts(tile) for tile in row] for row in rows]
    heights = [CELL + 8 + LINE * max(map(len, row)) + GAP for row in texts]
    top = MARGIN + 30 * len(heading[0]) + 20 * len(heading[1]) + GAP
    page = Image.new("RGB", (width + 2 * MARGIN, top + sum(heights) + MARGIN - GAP), PAPER)
    canvas = ImageDraw.Draw(page)
    for number, line in enumerate(heading[0]):
        canvas.text((MARGIN, MARGIN + 30 * number), line, INK, large)
    for number, line in enumerate(heading[1]):
        canvas.text((MARGIN, MARGIN + 30 * len(heading[0]) + 20 * number), line, FAINT, plain)
    for row, lines, height in zip(rows, texts, heights, strict=True):
        for column, (tile, written) in enumerate(zip(row, lines, strict=True)):
            left = MARGIN + column * (CELL + GAP)
            canvas.rectangle((left, top, left + CELL - 1, top + CELL - 1), FRAME)
            picture = fit(Image.fromarray(tile.pixels), CELL)
            page.paste(picture, (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2))
            for number, (text, color, written_in) in enumerate(written):
                canvas.text((left, top + CELL + 8 + LINE * number), text, color, written_in)
        top += height
    content = io.BytesIO()
    page.save(content, "PNG")
    return content.getvalue()


def _texts(tile: Tile) -> list[tuple[str, str, Font]]:
    """The lines below an image, each with its color and font."""
    parts = (tile.name, INK, font(13, bold=True)), (tile.wrong, ALARM, font(13)), (tile.detail, FAINT, font(12))
    return [
        (line, color, written_in)
        for text, color, written_in in parts
        for line in wrap(printable(text[:LONGEST]), written_in, CELL, MOST_LINES)
    ]
