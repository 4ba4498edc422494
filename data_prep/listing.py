"""What a source of images lists: every image as a range of bytes in a file, with its class.

Whatever images come in (folders, archives, tables), they are listed the same way, so that writing shards knows one way
to read: :func:`data_prep.storage.read_range`. A source whose images are no such ranges (compressed archives, Parquet,
generated images) unpacks them into a scratch folder first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

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
