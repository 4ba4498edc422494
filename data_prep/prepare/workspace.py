"""The hidden folder in which a data set is written; it survives an interruption, for a command with equal settings.

It is beside the output, and gets the output's name when it is complete and on the disk: an output that exists is
complete.

==================  ==================================================================================================
.lock               held by the running command
.unfinished         shows that `prepare` made the folder
request.json        the settings; a command with others is refused
listing/            the index of the source (Arrow)
scratch/            files that the source unpacked
SPLIT-NUMBER.beton  complete shards, each with its record SPLIT-NUMBER.json
==================  ==================================================================================================
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pydantic import Field, ValidationError

from data_prep.common.errors import UserError
from data_prep.common.files import (
    MADE_HERE,
    discard,
    locked,
    partials_in,
    rename_durably,
    sync_folder,
    unfinished_folder,
    write_atomically,
)
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
    write_manifest,
)
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.image_index import ImageIndex, map_table, write_table

LOCK, SPEC_FILE, INDEX_FOLDER, SCRATCH = ".lock", "request.json", "listing", "scratch"
_CLASSES, _PASSED_OVER = "classes.json", "passed-over.json"


class ShardRecord(Record):
    """Contents of a complete shard, and the images that were left out."""

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
    changed: dict[int, int] = Field(default_factory=dict)
    """Row in the index → size in bytes of an image whose file has changed since it was listed."""


@dataclass(frozen=True)
class PrepareWorkspace:
    """The work folder of one output, while its lock is held."""

    path: Path

    @property
    def scratch(self) -> Path:
        """The folder for files that the source unpacks."""
        folder = self.path / SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    def index(self, make: Callable[[], ImageIndex]) -> ImageIndex:
        """The index of the source: the stored one, or the result of `make`, which is stored."""
        folder = self.path / INDEX_FOLDER
        if not folder.is_dir():
            partial = self.path / f"{INDEX_FOLDER}.partial"
            discard(partial)
            partial.mkdir()
            _store(make(), partial)
            rename_durably(partial, folder)
        return load_index(self.path)

    def record(self, split: SplitName, number: int) -> ShardRecord | None:
        """The record of a complete shard; None if the shard has to be written: it is missing, or images were left out
        of it, which may have been repaired."""
        try:
            record = ShardRecord.model_validate_json(record_path(self.path, split, number).read_bytes())
        except (OSError, ValidationError):
            return None
        if record.file is None or record.left_out:
            return None
        try:
            whole = (self.path / record.file.file).stat().st_size == record.file.bytes
        except OSError:
            return None
        return record if whole else None

    def finish(self, manifest: Manifest, output: Path) -> None:
        """Adds the manifest, renames the folder to the output, and removes temporary files from it."""
        write_manifest(self.path, manifest)
        sync_folder(self.path)
        if output.is_dir():
            output.rmdir()  # empty, or the output would not have been prepared
        self.path.rename(output)
        sync_folder(output.parent)
        named = {file.file for split in manifest.splits.values() for file in split.files}
        for entry in list(output.iterdir()):  # now that nothing can be lost any more
            if entry.name not in {*named, MANIFEST_FILE}:
                discard(entry)


@contextmanager
def claim(output: Path, spec: PrepareSpec, restart: bool) -> Iterator[PrepareWorkspace]:
    """The work folder of an output, for one command at a time; kept with its shards if the body fails.

    Raises:
        UserError: another command is writing the output, or the folder belongs to other settings.
    """
    folder = unfinished_folder(output, "preparing")
    with locked(folder / LOCK, busy=f"{output} is being prepared by another command: wait until it ends"):
        try:
            if restart:
                _empty(folder)
            _check_spec(folder, output, spec)
            for place in filter(Path.is_dir, (folder, folder / SCRATCH)):
                for leftover in partials_in(place):
                    leftover.unlink(missing_ok=True)
            yield PrepareWorkspace(folder)
        except BaseException as error:
            # Complete shards stay; so does what listing has found, which may have taken hours, if the user interrupts.
            kept = ("*-*.json", INDEX_FOLDER, f"{SCRATCH}/*") if isinstance(error, KeyboardInterrupt) else ("*-*.json",)
            if not any(any(folder.glob(pattern)) for pattern in kept):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def load_index(folder: Path) -> ImageIndex:
    """The index in a work folder, mapped into memory."""
    stored = folder / INDEX_FOLDER
    classes = [ImageClass.model_validate(each) for each in json.loads((stored / _CLASSES).read_text(encoding="utf-8"))]
    splits: dict[SplitName, pa.Table] = {}
    for split in SPLITS:
        path = stored / f"{split}.arrow"
        if path.exists():
            splits[split] = map_table(path)
    passed_over: list[str] = []
    with suppress(FileNotFoundError):  # from before they were counted
        passed_over = json.loads((stored / _PASSED_OVER).read_text(encoding="utf-8"))
    return ImageIndex(classes, splits, passed_over)


def record_path(folder: Path, split: SplitName, number: int) -> Path:
    """Path of the record of a shard."""
    return folder / f"{split}-{number:05d}.json"


def _store(index: ImageIndex, folder: Path) -> None:
    classes = json.dumps([each.model_dump() for each in index.classes])
    (folder / _CLASSES).write_text(classes, encoding="utf-8")
    (folder / _PASSED_OVER).write_text(json.dumps(list(index.passed_over)), encoding="utf-8")
    for split, table in index.splits.items():
        write_table(table.to_batches(), folder / f"{split}.arrow")


def _check_spec(folder: Path, output: Path, spec: PrepareSpec) -> None:
    path = folder / SPEC_FILE
    if not path.exists():
        _empty(folder)
        write_atomically(path, spec.model_dump_json(indent=2))
        return
    try:
        existing = PrepareSpec.model_validate_json(path.read_bytes())
    except ValidationError:
        raise UserError(f"{path} is damaged: discard the unfinished data set with --restart") from None
    difference = spec.difference(existing)
    if difference:
        raise UserError(
            f"{output} was interrupted with other settings ({difference}): rerun with the same ones to resume, or "
            "discard it with --restart"
        )


def _empty(folder: Path) -> None:
    for leftover in folder.iterdir():
        if leftover.name not in (LOCK, MADE_HERE):
            discard(leftover)
