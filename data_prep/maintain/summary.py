"""Summary of a prepared data set, as a table or as JSON."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.common.errors import printable
from data_prep.common.files import format_bytes
from data_prep.format import beton
from data_prep.format.beton import Shard
from data_prep.format.manifest import MANIFEST_FILE, LeftOut, Manifest, Record, Source, Split, SplitName, load_manifest

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

NAMED = 5
"""Number of classes, and of images that were left out, that are named."""
STEPS = 12
"""Largest number of bins of a histogram."""
_BARS = "▁▂▃▄▅▆▇█"
_ROWS = 2**20  # rows of metadata that are read at a time


class Sides(Record):
    """Distribution of lengths, in pixels: quartiles, and a histogram with equal bins from smallest to largest."""

    smallest: int
    lower_quartile: int
    median: int
    upper_quartile: int
    largest: int
    histogram: list[int]


class ClassCount(Record):
    """A class and its number of images."""

    id: str
    name: str
    samples: int


class SplitSummary(Record):
    """The training or the validation images."""

    samples: int
    untouched: int
    """Number of images that kept the bytes of their JPEG file."""
    encoded: int
    """Number of images that were re-encoded as JPEG."""
    raw: int
    """Number of images stored as pixels."""
    left_out: list[LeftOut]
    files: int
    parts: int
    file_bytes: int
    """Size of all files."""
    bytes_per_image: float
    shorter_sides: Sides
    longer_sides: Sides
    samples_per_class: tuple[int, float, int]
    """Smallest, median and largest number of images of a class."""
    most: list[ClassCount]
    """The most frequent classes, at most NAMED."""
    least: list[ClassCount]
    """The least frequent classes, rarest first, without those in `most`."""


class Summary(Record):
    """A prepared data set."""

    folder: str
    name: str
    digest: str
    classes: int
    encoding: str
    max_side: int
    seed: int
    source: Source
    tools: dict[str, str]
    splits: dict[SplitName, SplitSummary]


def summarize(folder: Path) -> Summary:
    """Summarizes a data set from its manifest and the metadata of every file.

    Raises:
        UserError: the folder is not a prepared data set, or one of its files is missing or not in FFCV's format.
    """
    manifest = load_manifest(folder)
    return Summary(
        folder=str(folder),
        name=manifest.name,
        digest=manifest.digest,
        classes=len(manifest.classes),
        encoding=manifest.encoding,
        max_side=manifest.max_side,
        seed=manifest.seed,
        source=manifest.source,
        tools=manifest.tools,
        splits={name: _summarize_split(folder, manifest, split) for name, split in manifest.splits.items()},
    )


def _summarize_split(folder: Path, manifest: Manifest, split: Split) -> SplitSummary:
    shorter, longer = np.zeros((2, beton.MAX_SIDE + 1), np.int64)
    for file in split.files:
        metadata = Shard(folder / file.file).metadata
        for first in range(0, len(metadata), _ROWS):
            image = metadata["image"][first : first + _ROWS]
            shorter += np.bincount(np.minimum(image["height"], image["width"]), minlength=len(shorter))
            longer += np.bincount(np.maximum(image["height"], image["width"]), minlength=len(longer))
    counts = np.array(split.samples_per_class)
    order = np.argsort(-counts, kind="stable").tolist()
    return SplitSummary(
        samples=split.samples,
        untouched=split.untouched,
        encoded=split.samples - split.untouched - split.raw,
        raw=split.raw,
        left_out=split.left_out,
        files=len(split.files),
        parts=len(split.parts),
        file_bytes=sum(file.bytes for file in split.files),
        bytes_per_image=split.bytes / max(split.samples, 1),
        shorter_sides=_distribution(shorter),
        longer_sides=_distribution(longer),
        samples_per_class=(int(counts.min(initial=split.samples)), float(np.median(counts)), int(counts.max())),
        most=_name_classes(manifest, split, order[:NAMED]),
        least=_name_classes(manifest, split, order[NAMED:][: -NAMED - 1 : -1]),
    )


def _name_classes(manifest: Manifest, split: Split, labels: list[int]) -> list[ClassCount]:
    named = [manifest.classes[label] for label in labels]
    return [ClassCount(id=e.id, name=e.name, samples=split.samples_per_class[e.index]) for e in named]


def _distribution(counts: np.ndarray) -> Sides:
    """The distribution of lengths; `counts` (lengths,) holds the number of images of each length."""
    present = np.flatnonzero(counts)
    if len(present) == 0:
        return Sides(smallest=0, lower_quartile=0, median=0, upper_quartile=0, largest=0, histogram=[])
    smallest, largest = int(present[0]), int(present[-1])
    reached = np.cumsum(counts)
    quartiles = [int(np.searchsorted(reached, share * reached[-1])) for share in (0.25, 0.5, 0.75)]
    steps = np.linspace(smallest, largest + 1, min(STEPS, largest - smallest + 1) + 1).astype(int)
    histogram = [int(counts[a:b].sum()) for a, b in pairwise(steps)]
    lower, median, upper = quartiles
    return Sides(
        smallest=smallest, lower_quartile=lower, median=median, upper_quartile=upper, largest=largest,
        histogram=histogram,
    )  # fmt: skip


def render(summary: Summary) -> RenderableType:
    """The summary for a terminal."""
    from rich.console import Group
    from rich.text import Text

    title = Text.assemble((printable(summary.name), "bold"), (f"  {printable(summary.folder)}", "dim"))
    parts: list[RenderableType] = [title, "", _facts(summary), "", _splits(summary)]
    for name, split in summary.splits.items():
        if split.left_out:
            parts += ["", Text(f"left out of {name} because they cannot be decoded:", "yellow")]
            parts += [Text(printable(f"  {each.image}: {each.reason}")) for each in split.left_out[:NAMED]]
            if len(split.left_out) > NAMED:
                parts.append(Text(f"  … and {len(split.left_out) - NAMED} more, in {MANIFEST_FILE}", "dim"))
    return Group(*parts)


def _facts(summary: Summary) -> Table:
    from rich.table import Table
    from rich.text import Text

    source = summary.source
    options = ", ".join(f"{name} {value}" for name, value in source.options.items())
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("classes", f"{summary.classes:,}"),
        ("stored as", f"{summary.encoding}, sides up to {summary.max_side} px, shuffled with seed {summary.seed}"),
        ("source", f"{source.kind} {source.location}" + (f" ({options})" if options else "")),
        ("written by", ", ".join(f"{name} {version}" for name, version in summary.tools.items())),
        ("digest", summary.digest),
    ):
        facts.add_row(Text(name, "dim"), Text(printable(value)))
    return facts


def _splits(summary: Summary) -> Table:
    """A table with a column for each split."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in summary.splits:
        table.add_column(name)
    columns = [_column(split) for split in summary.splits.values()]
    for label in columns[0] if columns else ():
        table.add_row(Text(label, "dim"), *(Text(column[label]) for column in columns))
    return table


def _column(split: SplitSummary) -> dict[str, str]:
    least, median, most = split.samples_per_class
    parts = f" ({split.parts:,} parts)" if split.parts != split.files else ""
    return {
        "images": f"{split.samples:,}",
        "  untouched JPEG": _share(split.untouched, split.samples),
        "  re-encoded JPEG": _share(split.encoded, split.samples),
        "  raw pixels": _share(split.raw, split.samples),
        "  left out": f"{len(split.left_out):,}",
        "on the disk": format_bytes(split.file_bytes),
        "files": f"{split.files:,}{parts}",
        "an image": format_bytes(round(split.bytes_per_image)),
        "shorter sides": _sides(split.shorter_sides),
        "longer sides": _sides(split.longer_sides),
        "images a class": f"{least:,} to {most:,}, median {median:,.0f}" if least < most else f"all {most:,}",
        "most frequent": _classes(split.most) if least < most else "—",
        "least frequent": _classes(split.least) if least < most else "—",
    }


def _share(count: int, total: int) -> str:
    return f"{count:,}" + (f"  ({100 * count / total:.3g} %)" if count else "")


def _sides(sides: Sides) -> str:
    if sides.smallest == sides.largest:
        return f"all {sides.largest} px"
    tallest = max(sides.histogram)
    bars = "".join(_BARS[-(-count * 7 // tallest)] if count else " " for count in sides.histogram)
    quartiles = f"half {sides.lower_quartile} to {sides.upper_quartile}, median {sides.median}"
    return f"{sides.smallest} {bars} {sides.largest} px\n{quartiles}"


def _classes(counts: list[ClassCount]) -> str:
    return "\n".join(f"{printable(each.name)} {each.samples:,}" for each in counts) or "—"
