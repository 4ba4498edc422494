"""The folder in which a data set is being written: what it holds survives an interruption, and belongs to one request.

It lies beside the output, hidden, and gets the output's name when everything is complete and on the disk: an output
that exists is whole.

==================  ==================================================================================================
.lock               held by the command that is at work
request.json        what was asked for: another request is refused
listing/            the source's images (Arrow), listed once
scratch/            what a source had to unpack
SPLIT-NUMBER.beton  finished shards, each with a record SPLIT-NUMBER.json of what it holds
==================  ==================================================================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import ValidationError

from data_prep.common.errors import UserError
from data_prep.common.files import locked, sync_folder, write_atomically
from data_prep.format.manifest import (
    MANIFEST_FILE,
    SPLITS,
    File,
    ImageClass,
    LeftOut,
    Manifest,
    Part,
    Record,
    SplitName,
)
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.image_index import ImageIndex, map_table, write_table

LOCK, SPEC_FILE, INDEX_FOLDER, SCRATCH = ".lock", "request.json", "listing", "scratch"
_CLASSES = "classes.json"


class ShardRecord(Record):
    """What a finished shard holds, and what was left out of it."""

    file: File | None
    """None if all its images were left out."""
    part: Part | None
    samples_per_class: list[int]
    content_bytes: int
    untouched: int
    raw: int
    sides: tuple[int, int]
    """Smallest and largest, in pixels; (0, 0) without images."""
    left_out: list[LeftOut]


@dataclass(frozen=True)
class PrepareWorkspace:
    """The folder of one request, while its lock is held."""

    path: Path

    @property
    def scratch(self) -> Path:
        """A folder for what the source unpacks."""
        folder = self.path / SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    def index(self, make: Callable[[], ImageIndex]) -> ImageIndex:
        """The source's listing: the one that is here, or a new one, which is kept."""
        folder = self.path / INDEX_FOLDER
        if not folder.is_dir():
            partial = self.path / f"{INDEX_FOLDER}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _store(make(), partial)
            partial.rename(folder)
        return load_index(self.path)

    def record(self, split: SplitName, number: int) -> ShardRecord | None:
        """What a finished shard holds; None if it has to be written."""
        try:
            record = ShardRecord.model_validate_json(record_path(self.path, split, number).read_bytes())
        except (OSError, ValidationError):
            return None
        if record.file is None:
            return record
        try:
            whole = (self.path / record.file.file).stat().st_size == record.file.bytes
        except OSError:
            return None
        return record if whole else None

    def finish(self, manifest: Manifest, output: Path) -> None:
        """Adds the manifest, removes what only work needed, and gives the folder the output's name."""
        write_atomically(self.path / MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
        for name in (INDEX_FOLDER, SCRATCH):
            shutil.rmtree(self.path / name, ignore_errors=True)
        named = {file.file for split in manifest.splits.values() for file in split.files}
        for entry in self.path.iterdir():
            if entry.name not in {*named, MANIFEST_FILE, LOCK}:
                entry.unlink()
        sync_folder(self.path)
        if output.is_dir():
            output.rmdir()  # empty, or the output would not have been prepared
        self.path.rename(output)
        sync_folder(output.parent)
        (output / LOCK).unlink(missing_ok=True)


@contextmanager
def claim(output: Path, spec: PrepareSpec, restart: bool) -> Iterator[PrepareWorkspace]:
    """The work folder of an output, for one command at a time. It stays if the body fails before it is finished.

    Raises:
        UserError: another command is at work, or the folder holds the beginnings of another request.
    """
    folder = output.with_name(f".{output.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, busy=f"{output} is being prepared by another command: wait until it ends"):
        try:
            if restart:
                _empty(folder)
            _check_spec(folder, output, spec)
            yield PrepareWorkspace(folder)
        finally:
            if folder.is_dir() and not any(folder.glob("*-*.json")):
                shutil.rmtree(folder, ignore_errors=True)  # nothing in it is worth going on with


def load_index(folder: Path) -> ImageIndex:
    """The listing in a work folder, mapped into memory."""
    stored = folder / INDEX_FOLDER
    classes = [ImageClass.model_validate(each) for each in json.loads((stored / _CLASSES).read_text(encoding="utf-8"))]
    splits: dict[SplitName, pa.Table] = {}
    for split in SPLITS:
        path = stored / f"{split}.arrow"
        if path.exists():
            splits[split] = map_table(path)
    return ImageIndex(classes, splits)


def record_path(folder: Path, split: SplitName, number: int) -> Path:
    """Where the record of a shard is."""
    return folder / f"{split}-{number:05d}.json"


def _store(index: ImageIndex, folder: Path) -> None:
    classes = json.dumps([each.model_dump() for each in index.classes])
    (folder / _CLASSES).write_text(classes, encoding="utf-8")
    for split, table in index.splits.items():
        write_table(table.to_batches(), folder / f"{split}.arrow")


def _check_spec(folder: Path, output: Path, spec: PrepareSpec) -> None:
    path = folder / SPEC_FILE
    if not path.exists():
        _empty(folder)
        write_atomically(path, spec.model_dump_json(indent=2).encode())
        return
    try:
        existing = PrepareSpec.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path} is damaged: discard the unfinished data set with --restart") from None
    difference = spec.difference(existing)
    if difference:
        raise UserError(
            f"{output} was begun and not finished by another request ({difference}): ask for the same again to go on, "
            "or discard it with --restart"
        )


def _empty(folder: Path) -> None:
    for leftover in folder.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover.name != LOCK:
            leftover.unlink()
