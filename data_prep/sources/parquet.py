"""Parquet files with a column of images and one of labels, as Hugging Face distributes ImageNet.

Columns are compressed and read by groups of rows; a shuffled order would read each group a hundred times. Therefore the
images are unpacked first, one Parquet file at a time, into a file with their bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.files import replacing
from data_prep.common.parallel import Advance, Executor
from data_prep.format.manifest import SPLITS, SplitName
from data_prep.sources.image_index import ImageIndex, IndexedImage, PassedOver
from data_prep.sources.labelled import LabelledImage, files_of_splits, to_index
from data_prep.sources.registry import FolderNames

LABELS = ("label", "labels", "fine_label", "cls")
ROWS = 64
"""Number of images that are in memory at a time."""


def recognizes(folder: FolderNames) -> bool:
    """Whether a folder, or its subfolder `data`, holds Parquet files."""
    return any(name.endswith(".parquet") for name in folder.with_data)


def open_source(location: str, class_names: Path | str | None = None) -> ParquetTables:
    """The Parquet files below a folder."""
    return ParquetTables(location, class_names)


class _Task(NamedTuple):
    """A Parquet file, and the file into which its images are unpacked."""

    source: str
    target: Path


class ParquetTables:
    """A folder or an address with files such as train-00000-of-00294.parquet and validation-00000-of-00014.parquet.

    Args:
        folder: holds the files, also in folders below.
        names: classes in the order of their labels, see :func:`data_prep.format.class_names.from_labels`; by default
            those that Hugging Face keeps in the files.
    """

    kind = "parquet"

    def __init__(self, folder: str, names: Path | str | None = None) -> None:
        self._folder = folder if storage.is_remote(folder) else str(Path(folder).resolve())
        self._names = names
        self.location = storage.redact(self._folder)
        self.options: dict[str, int | float | str] = {}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """Unpacks the images of both splits.

        Raises:
            UserError: a file is damaged, or has no columns of images and labels.
        """
        passed_over = PassedOver()
        files = files_of_splits(self._folder, ".parquet", passed_over)
        tasks = {
            split: [_Task(file, scratch / f"{split}-{number:05d}.images") for number, file in enumerate(files[split])]
            for split in SPLITS
        }
        images: dict[SplitName, Iterable[LabelledImage]] = {
            split: (each for target in executor.map(_unpack, tasks[split]) for each in _read_index(target))
            for split in SPLITS
        }
        given = _class_names(_open(files["train"][0]).schema_arrow)
        return to_index(self.location, images, scratch, self._names, given, passed_over)


def _unpack(task: _Task, advance: Advance) -> Path:
    """Writes the images of a file to another one, and then their index, which shows that the images are complete."""
    if not _index(task.target).exists():
        table = _open(task.source)
        image, label = _columns(task.source, table.schema_arrow)
        labels: list[int] = []
        sizes: list[int] = []
        name = storage.redact(task.source)
        with replacing(task.target) as file:  # of its own: a cluster may run a task twice
            try:
                for batch in table.iter_batches(ROWS, columns=[image, label]):
                    for content, number in zip(_contents(batch[image]), batch[label].to_pylist(), strict=True):
                        if content is None or number is None:
                            raise UserError(f"{name} has a row {len(sizes)} without image or label")
                        file.write(content)
                        labels.append(number)
                        sizes.append(len(content))
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{name} cannot be read: {storage.first_line(error)}") from None
        stem = name.partition("?")[0].rsplit("/", 1)[-1]
        index = pa.table({"label": labels, "size": sizes, "name": [f"{stem}/{i}" for i in range(len(sizes))]})
        with replacing(_index(task.target)) as file:
            pq.write_table(index, file)
    return task.target


def _index(target: Path) -> Path:
    return target.with_suffix(".index")


def _read_index(target: Path) -> Iterator[LabelledImage]:
    offset = 0
    for row in pq.read_table(_index(target)).to_pylist():
        yield LabelledImage(row["label"], IndexedImage(row["name"], str(target), offset, row["size"]))
        offset += row["size"]


def _open(location: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_file(location))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{storage.redact(location)} is not a Parquet file: {storage.first_line(error)}") from None


def _columns(location: str, schema: pa.Schema) -> tuple[str, str]:
    """Names of the columns of images and of labels."""
    image = next((field.name for field in schema if _holds_images(field.type)), None)
    label = next(
        (name for name in LABELS if name in schema.names and pa.types.is_integer(schema.field(name).type)), None
    )
    if image is None or label is None:
        lacking = "images (bytes, or a struct with bytes)" if image is None else f"labels (numbers called {LABELS[0]})"
        raise UserError(
            f"{storage.redact(location)} has no column of {lacking}: its columns are {', '.join(schema.names)}"
        )
    return image, label


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _contents(column: pa.Array) -> list[bytes | None]:
    return (column.field("bytes") if pa.types.is_struct(column.type) else column).to_pylist()


def _class_names(schema: pa.Schema) -> list[str] | None:
    """The class names that Hugging Face stores with the schema, if there are any."""
    try:
        features = from_json(schema.metadata[b"huggingface"])["info"]["features"]
        names = next(features[name]["names"] for name in LABELS if name in features)
    except (KeyError, TypeError, ValueError, StopIteration):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
