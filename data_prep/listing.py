"""What a source of images lists: every image as a range of bytes in a file, with its class.

Whatever images come in (folders, archives, tables), they are listed the same way, so that writing shards knows one way
to read: :func:`data_prep.storage.read_range`. A source whose images are no such ranges (compressed archives, Parquet,
generated images) unpacks them into a scratch folder first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.manifest import SPLITS, ImageClass, SplitName

IMAGES = pa.schema(
    [
        ("label", pa.int32()),  # index of the class
        ("name", pa.string()),  # names the image in messages, such as its path below the source's root
        ("file", pa.dictionary(pa.int32(), pa.string())),  # path or address of the file that holds its bytes
        ("offset", pa.int64()),  # where they begin
        ("size", pa.int64()),  # how many they are
    ]
)


BATCH_ROWS = 2**14
"""Images that are listed as Python objects before they become Arrow arrays."""
_ROWS = pa.schema(
    [("class", pa.string()), ("name", pa.string()), ("file", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]
)


class Found(NamedTuple):
    """An image file, by its path relative to the root; it is a range of bytes of `file`."""

    name: str
    file: str
    offset: int
    size: int


class Columns:
    """The images of a split, column by column: as Arrow arrays, a tenth of the size of Python's objects."""

    def __init__(self) -> None:
        self.classes: set[str] = set()
        self._rows: list[tuple[str, str, str, int, int]] = []
        self._batches: list[pa.RecordBatch] = []

    def add(self, identity: str, image: Found) -> None:
        """Appends an image of a class."""
        self.classes.add(identity)
        self._rows.append((identity, *image))
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def table(self, ids: Sequence[str]) -> pa.Table:
        """All images, in the order of their classes and names, as a listing has them."""
        self._flush()
        table = pa.Table.from_batches(self._batches).sort_by([("class", "ascending"), ("name", "ascending")])
        labels = pc.index_in(table["class"], value_set=pa.array(ids, pa.string()))
        columns = [table[name] for name in ("name", "file", "offset", "size")]
        return pa.table([labels, *columns], names=IMAGES.names).cast(IMAGES)

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(column, kind) for column, kind in zip(zip(*self._rows, strict=True), _ROWS.types, strict=True)
            ]
            self._batches.append(pa.record_batch(columns, schema=_ROWS))
            self._rows = []


@dataclass(frozen=True)
class Listing:
    """All images of a source, before they are shuffled."""

    classes: list[ImageClass]
    splits: dict[SplitName, pa.Table]
    """Tables of the schema IMAGES, in an order that depends on nothing but the source's content."""

    def samples(self) -> int:
        """Images in all splits."""
        return sum(table.num_rows for table in self.splits.values())

    def labels(self, split: SplitName) -> np.ndarray:
        """(images,) int32: the class of each image of a split."""
        return self.splits[split]["label"].to_numpy()

    def digest(self) -> str:
        """SHA-256 over the classes, and label, name and size of each image: not over where the source lies."""
        digest = hashlib.sha256(repr([(each.id, each.name) for each in self.classes]).encode())
        for split in SPLITS:
            table = self.splits[split]
            digest.update(f"{split} {table.num_rows}".encode())
            for column in ("label", "size"):
                digest.update(table[column].to_numpy().astype("<i8").tobytes())
            for chunk in table["name"].chunks:
                for name in chunk.to_pylist():
                    digest.update(name.encode() + b"\0")
        return digest.hexdigest()
