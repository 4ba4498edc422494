"""Contact sheet: an image with a grid of labelled images of a prepared data set."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_prep.codec.decode import DecodeError, decode
from data_prep.codec.jpeg_header import read_header
from data_prep.common.errors import UserError, count_of, printable
from data_prep.format import class_names
from data_prep.format.beton import RAW, Sample, Shard
from data_prep.format.manifest import SPLITS, ImageClass, Manifest, Split, SplitName, load_manifest
from data_prep.maintain.drawing import ALARM, FAINT, FRAME, INK, PAPER, Font, fit, font, shorten, wrap

CELL, GAP, MARGIN = 200, 20, 40  # in pixels: a picture's frame, what is between two, what is around all
CAPTION, HEADING, TITLE = 46, 62, 84  # heights, in pixels: below a picture, above a split, above all
LARGEST = 100
"""Largest number of columns or rows."""
MOST = 2000
"""Largest number of images of a split: a sheet of two splits has 0.25 gigapixels then."""
LONGEST = 300
"""Characters of a text that are considered; fewer fit."""


class Chosen(NamedTuple):
    """A sample, and its number in the split."""

    number: int
    sample: Sample


def draw(
    folder: Path,
    *,
    splits: Sequence[SplitName] = SPLITS,
    class_name: str | None = None,
    columns: int = 8,
    rows: int = 4,
    seed: int = 0,
) -> Image.Image:
    """Draws randomly chosen images of each split, in the order of their classes.

    Args:
        folder: of the data set.
        splits: names of splits; those that the data set lacks are omitted.
        class_name: id, name or index of a class, whose images alone are drawn.
        columns, rows: size of each split's grid, 1 to LARGEST, and MOST images.
        seed: seed of the choice of images.

    Raises:
        UserError: the data set is incomplete, or has no such split or class, or the grid is too large.
    """
    if columns * rows > MOST:
        raise UserError(f"a sheet of {columns} × {rows} images is too large: choose --columns and --rows for {MOST}")
    manifest = load_manifest(folder)
    chosen_class = class_names.find(manifest.classes, class_name) if class_name is not None else None
    present = [name for name in splits if name in manifest.splits]
    if not present:
        raise UserError(f"{folder} has no {' or '.join(splits)} images: choose one of {', '.join(manifest.splits)}")
    grids = {
        name: _choose(folder, manifest.splits[name], columns * rows, (seed, SPLITS.index(name)), chosen_class)
        for name in present
    }
    heights = {name: HEADING + -(-len(grid) // columns) * (CELL + CAPTION + GAP) for name, grid in grids.items()}
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    page = _Page(max(width, 640), 2 * MARGIN + TITLE + sum(heights.values()) - GAP)
    page.title(manifest, f"seed {seed}")
    top = MARGIN + TITLE
    for name, grid in grids.items():
        page.heading(top, name, manifest.splits[name].samples, len(grid), chosen_class)
        for i, chosen in enumerate(grid):
            row, column = divmod(i, columns)
            place = (MARGIN + column * (CELL + GAP), top + HEADING + row * (CELL + CAPTION + GAP))
            page.picture(place, chosen, manifest.classes)
        top += heights[name]
    return page.image


def _choose(folder: Path, split: Split, count: int, seed: tuple[int, ...], only: ImageClass | None) -> list[Chosen]:
    """Samples in the order of their labels."""
    shards = [folder / file.file for file in split.files]
    firsts = np.cumsum([0, *(file.samples for file in split.files)])
    if only is None:
        candidates: np.ndarray | int = int(firsts[-1])
    else:
        found = [first + np.flatnonzero(Shard(path).metadata["label"] == only.index)
                 for first, path in zip(firsts[:-1], shards, strict=True)]  # fmt: skip
        candidates = np.concatenate(found) if found else 0
    total = candidates if isinstance(candidates, int) else len(candidates)
    random = np.random.default_rng(seed)
    numbers = random.choice(candidates, min(count, total), replace=False).tolist() if total else []
    chosen = []
    for number in sorted(numbers):
        file = int(np.searchsorted(firsts, number, side="right")) - 1
        chosen.append(Chosen(number, Shard(shards[file]).read(number - int(firsts[file]))))
    return sorted(chosen, key=lambda each: (each.sample.label, each.number))


class _Page:
    """The image that is drawn."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._canvas = ImageDraw.Draw(self.image)
        self._large, self._bold, self._plain, self._small = font(30, True), font(14, True), font(15), font(12)
        self._right = width - MARGIN

    def title(self, manifest: Manifest, remark: str) -> None:
        counts = " and ".join(f"{split.samples:,} {name}" for name, split in manifest.splits.items())
        classes = count_of(len(manifest.classes), "class")
        self._text((MARGIN, MARGIN), manifest.name, self._large, INK)
        facts = f"{counts} images  ·  {classes}  ·  digest {manifest.digest[:12]}  ·  {remark}"
        self._text((MARGIN, MARGIN + 44), facts, self._plain, FAINT)

    def heading(self, top: int, name: str, samples: int, shown: int, only: ImageClass | None) -> None:
        self._canvas.line((MARGIN, top + 14, self._right, top + 14), FRAME, 2)
        of = f"all {samples:,}" if shown == samples else f"{shown} of {samples:,}, chosen at random"
        of += f" from {only.name}" if only else ""
        self._text((MARGIN, top + 26), name.capitalize(), font(18, True), INK)
        offset = round(font(18, True).getlength(name.capitalize())) + 14
        self._text((MARGIN + offset, top + 29), of, self._plain, FAINT)

    def picture(self, place: tuple[int, int], chosen: Chosen, classes: Sequence[ImageClass]) -> None:
        """Draws a sample in its frame, with its class, number, size and encoding below."""
        left, top = place
        sample = chosen.sample
        self._canvas.rounded_rectangle((left, top, left + CELL - 1, top + CELL - 1), 8, FRAME)
        try:
            picture = fit(_pixels(sample), CELL)
            corner = (left + (CELL - picture.width) // 2, top + (CELL - picture.height) // 2)
            self.image.paste(picture, corner, _round(picture.size))
        except DecodeError as error:
            for line, text in enumerate(("does not decode:", *wrap(str(error), self._small, CELL - 24, 9))):
                self._text((left + 12, top + 12 + 16 * line), text, self._small, ALARM)
        known = 0 <= sample.label < len(classes)
        name = classes[sample.label].name if known else f"unknown class {sample.label}"
        self._canvas.ellipse((left, top + CELL + 11, left + 9, top + CELL + 20), _color(sample.label, len(classes)))
        self._text((left + 15, top + CELL + 7), name, self._bold, INK if known else ALARM, CELL - 15)
        kind = "raw" if sample.mode == RAW else "JPEG"
        detail = f"#{chosen.number}  {sample.width}×{sample.height}  {kind}"
        self._text((left + 15, top + CELL + 26), detail, self._small, FAINT, CELL - 15)

    def _text(self, place: tuple[int, int], text: str, written_in: Font, color: str, width: int | None = None) -> None:
        width = self._right - place[0] if width is None else width
        # Names come from outside: a line break could not be measured.
        self._canvas.text(place, shorten(printable(text[:LONGEST]), written_in, width), color, written_in)


def _pixels(sample: Sample) -> Image.Image:
    if sample.mode == RAW:
        flat = np.frombuffer(sample.content, np.uint8)
        return Image.fromarray(flat.reshape(sample.height, sample.width, 3))
    header = read_header(sample.content)
    if header[:2] != (sample.height, sample.width):
        raise DecodeError(f"it has {header.height}×{header.width} pixels instead of {sample.height}×{sample.width}")
    pixels = np.empty((sample.height, sample.width, 3), np.uint8)
    decode(sample.content, sample.height, sample.width, pixels)
    return Image.fromarray(pixels)


def _round(size: tuple[int, int]) -> Image.Image:
    """A mask with rounded corners, antialiased by drawing it at four times the size."""
    mask = Image.new("L", (4 * size[0], 4 * size[1]))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * size[0] - 1, 4 * size[1] - 1), 32, 255)
    return mask.resize(size, Image.Resampling.BOX)


def _color(label: int, classes: int) -> tuple[int, ...]:
    """Color of a class; classes with neighboring indices have clearly different ones."""
    turn = label / classes if classes <= 12 else label * 0.618034
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(turn % 1, 0.52, 0.62))
