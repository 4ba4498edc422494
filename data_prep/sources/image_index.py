"""Index of the images of a source: each image is a range of bytes in a file, with its class.

Every source (folders, archives, tables) lists its images in this form, so that shards are written from one kind of
read: :func:`data_prep.common.storage.read_range`. A source whose images are not such ranges (compressed archives,
Parquet, generated images) unpacks them into a scratch folder first.
"""

from __future__ import annotations

import errno
import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.common.errors import UserError, printable
from data_prep.common.files import replacing
from data_prep.format.manifest import SPLITS, ImageClass, SplitName

IMAGES = pa.schema(
    [
        ("label", pa.int32()),  # index of the class
        ("name", pa.string()),  # names the image in messages, such as its path below the source's root
        ("file", pa.string()),  # path or address of the file that holds its bytes
        ("offset", pa.int64()),  # where they begin
        ("size", pa.int64()),  # how many they are
    ]
)
BATCH_ROWS = 2**14
"""Number of images of an index that are in memory at a time."""
CACHE_KILOBYTES = 2**14
"""Memory of an index builder, in kB; it keeps the rest on the disk."""


CLUTTER = frozenset(
    {"thumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx", "lost+found", "#recycle", "$recycle.bin"}
)
"""Names, in lower case, of files and folders that desktops, network drives and archivers leave behind."""
HIDDEN_OR_CLUTTER = "hidden files and known clutter"
NO_FILES = "links that lead nowhere, pipes and devices"


def is_clutter(path: str) -> bool:
    """Whether a file, or a folder that it is in, is hidden or clutter; `path` is relative to the source's root."""
    return any(part.startswith(".") or part.lower() in CLUTTER for part in path.split("/"))


class IndexedImage(NamedTuple):
    """An image file: its path relative to the root, and the range of bytes of `file` that holds it."""

    name: str
    file: str
    offset: int
    size: int


class PassedOver:
    """Counts of files by the reason for which they were passed over, with an example of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, path: str) -> None:
        """Counts a file."""
        count, example = self._found.get(reason, (0, path))
        self._found[reason] = (count + 1, example)

    def filter(self, images: Iterable[IndexedImage]) -> Iterator[IndexedImage]:
        """Those that are neither hidden nor clutter; counts the others."""
        for image in images:
            if is_clutter(image.name):
                self.add(HIDDEN_OR_CLUTTER, image.name)
            else:
                yield image

    def sentences(self) -> list[str]:
        """One for each reason."""
        return [
            f"{count} passed over ({reason}), such as {printable(path)}"
            for reason, (count, path) in self._found.items()
        ]


class ImageIndexBuilder:
    """Sorts the images of a split on the disk, as they are found; memory does not grow with their number.

    Args:
        folder: for files, which the caller removes.
        split: name of the split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        self.classes: set[str] = set()
        self._path = folder / f"{split}.arrow"
        self._rows: list[tuple[str, str, str, int, int]] = []
        database = folder / f"{split}.sqlite"
        database.unlink(missing_ok=True)  # left by an interrupted command
        try:
            self._database = sqlite3.connect(database, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise UserError(
                f"{database} cannot be opened ({error}): its path has {len(str(database))} characters, choose an "
                "output with a shorter one"
            ) from None
        for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KILOBYTES}"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute(
            "CREATE TABLE images (number INTEGER, class TEXT, name TEXT, file TEXT, start INTEGER, size INTEGER, "
            "PRIMARY KEY (class, name, number)) WITHOUT ROWID"  # the table is its own index: no sorting, no second copy
        )
        self._count = 0

    def add(self, identity: str, image: IndexedImage) -> None:
        """Adds an image of a class.

        Raises:
            UserError: its name is not valid UTF-8.
            OSError: the disk is full.
        """
        self.classes.add(identity)
        self._rows.append((identity, *image))
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def keep_last(self) -> list[str]:
        """Of images of the same class and name keeps the one that was added last; returns the names of the others."""
        self._flush()
        earlier = "EXISTS (SELECT 1 FROM images b WHERE (b.class, b.name) = (a.class, a.name) AND b.number > a.number)"
        return [name for (name,) in self._database.execute(f"DELETE FROM images AS a WHERE {earlier} RETURNING name")]

    def table(self, ids: Sequence[str]) -> pa.Table:
        """The table of all images by class and name, mapped into memory; no image can be added afterwards.

        Args:
            ids: of the classes, in the order of their numbers.
        """
        self._flush()
        labels = {identity: label for label, identity in enumerate(ids)}
        rows = self._database.execute("SELECT class, name, file, start, size FROM images ORDER BY class, name, number")

        def batches() -> Iterator[pa.RecordBatch]:
            while chunk := rows.fetchmany(BATCH_ROWS):
                identities, *columns = zip(*chunk, strict=True)
                numbers = [labels[identity] for identity in identities]
                yield pa.record_batch([pa.array(each) for each in (numbers, *columns)], IMAGES.names).cast(IMAGES)

        write_table(batches(), self._path)
        self._database.close()
        self._path.with_suffix(".sqlite").unlink()
        return map_table(self._path)

    def _flush(self) -> None:
        rows = [(self._count + number, *row) for number, row in enumerate(self._rows)]
        try:
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._database.execute("COMMIT")
        except UnicodeEncodeError as error:
            name = str(error.object).encode("utf-8", "backslashreplace").decode()
            raise UserError(f"{name} has a name that is not in UTF-8: rename it") from None
        except sqlite3.OperationalError as error:  # "database or disk is full"
            raise OSError(errno.ENOSPC if "full" in str(error) else errno.EIO, str(error), str(self._path)) from None
        self._count += len(rows)
        self._rows = []


def write_table(batches: Iterable[pa.RecordBatch], path: Path) -> None:
    """Writes images to a file that can be mapped; an earlier file of that name stays valid where it is mapped."""
    with replacing(path) as file, pa.ipc.new_file(file, IMAGES) as writer:
        for batch in batches:
            writer.write_batch(batch)


def map_table(path: Path) -> pa.Table:
    """The images in a file, mapped into memory: only the rows that are read use it."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def pick(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Rows of a table in the given order, without loading the others into memory as Table.take does."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    batches = table.to_batches()
    ends = np.searchsorted(ascending, np.cumsum([batch.num_rows for batch in batches]))
    pieces, start, first = [table.schema.empty_table()], 0, 0
    for batch, end in zip(batches, ends, strict=True):
        if end > first:
            taken = batch.take(pa.array(ascending[first:end] - start))
            pieces.append(pa.Table.from_batches([taken]))
        start, first = start + batch.num_rows, end
    places = np.empty(len(rows), np.int64)
    places[order] = np.arange(len(rows))
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(places))


@dataclass(frozen=True)
class ImageIndex:
    """All images of a source, before they are shuffled."""

    classes: list[ImageClass]
    splits: dict[SplitName, pa.Table]
    """Tables of the schema IMAGES, in an order that depends on the content of the source alone."""
    passed_over: Sequence[str] = ()
    """Sentences on files that are not listed."""

    def samples(self) -> int:
        """Number of images in all splits."""
        return sum(table.num_rows for table in self.splits.values())

    def labels(self, split: SplitName) -> np.ndarray:
        """(images,) int32: the class of each image of a split."""
        return self.splits[split]["label"].to_numpy()

    def with_sizes(self, split: SplitName, sizes: Mapping[int, int]) -> ImageIndex:
        """The same index with other sizes of images, by their rows in the table of a split."""
        if not sizes:
            return self
        table = self.splits[split]
        column = table["size"].to_numpy().copy()
        column[list(sizes)] = list(sizes.values())
        changed = table.set_column(IMAGES.get_field_index("size"), IMAGES.field("size"), pa.array(column))
        return replace(self, splits={**self.splits, split: changed})

    def digest(self) -> str:
        """SHA-256 of the classes, and of label, name and size of each image; independent of the source's location."""
        digest = hashlib.sha256(repr([(each.id, each.name) for each in self.classes]).encode())
        for split in SPLITS:
            table = self.splits[split]
            digest.update(f"{split} {table.num_rows}".encode())
            for column in ("label", "size"):
                for chunk in table[column].chunks:
                    digest.update(chunk.to_numpy().astype("<i8").tobytes())
            for chunk in table["name"].chunks:
                for name in chunk.to_pylist():
                    digest.update(name.encode() + b"\0")
        return digest.hexdigest()


def find_fault(index: ImageIndex) -> str | None:
    """What contradicts itself in an index, as a clause; None if nothing does."""
    if not isinstance(index, ImageIndex):
        return f"{type(index).__name__} stands instead of an ImageIndex"
    ids = [each.id for each in index.classes]
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        return f"two classes have the id {printable(twice[0])}"
    if set(index.splits) != set(SPLITS):
        return f"the splits are {', '.join(map(str, index.splits)) or 'missing'} instead of {', '.join(SPLITS)}"
    for split, table in index.splits.items():
        if not isinstance(table, pa.Table) or table.schema != IMAGES:
            return f"the images of the {split} split are no table of the schema IMAGES"
        if any(column.null_count for column in table.columns):
            return f"an image of the {split} split lacks a value"
        for name, least, end in (("label", 0, len(ids)), ("offset", 0, 2**63), ("size", 0, 2**31)):
            limits = pc.min_max(table[name]).as_py()
            if table.num_rows and not (least <= limits["min"] and limits["max"] < end):
                found = f"from {limits['min']} to {limits['max']}"
                return f"the {name} of images of the {split} split is {found}, outside {least} … {end - 1}"
    return None
