"""Writes a prepared data set: the images of a source, in a shuffled order, as FFCV shards, and the manifest.

Disk space and time are estimated first, from a few images; then threads or Ray tasks write shards
(:mod:`data_prep.prepare.shard_writer`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.common import storage
from data_prep.common.distribution import installed_versions
from data_prep.common.errors import UserError
from data_prep.common.files import explain_os_errors, is_free, replaceable
from data_prep.common.parallel import Executor
from data_prep.format import beton
from data_prep.format.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    SPLITS,
    LeftOut,
    Manifest,
    Source,
    Split,
    load_manifest,
)
from data_prep.prepare import shard_writer, workspace
from data_prep.prepare.shard_writer import ShardPlan, WriteShard
from data_prep.prepare.spec import PrepareSpec
from data_prep.prepare.workspace import PrepareWorkspace, ShardRecord
from data_prep.sources.folders import SPLIT_FOLDERS
from data_prep.sources.image_index import ImageIndex
from data_prep.sources.registry import ImageSource, list_images

PROBES = 32
"""Number of images from which disk space and time are estimated."""
PER_SAMPLE = beton.METADATA.itemsize + beton.ALLOCATION.itemsize
_TOOLS = ("phasecollapse", "ffcv", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class PrepareResult:
    """The result of :func:`prepare`."""

    manifest: Manifest
    already_there: bool
    """An earlier command finished the same request."""


class Estimate(NamedTuple):
    """Estimate of the disk space and time that writing takes."""

    images: int
    """Number of images to be written."""
    bytes: int
    seconds: float
    free_bytes: int
    passed_over: Sequence[str] = ()
    """Sentences on files of the source that are not among the images."""


def prepare(
    source: ImageSource,
    output: Path,
    spec: PrepareSpec,
    executor: Executor,
    *,
    threads: int = 1,
    restart: bool = False,
    while_listing: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext(),
    on_estimate: Callable[[Estimate], None] = lambda estimate: None,
) -> PrepareResult:
    """Writes the images of `source` to the new folder `output`.

    After an interruption, the same call resumes: it keeps complete shards and the index of the source.

    Args:
        output: the new folder, or an empty one.
        spec: settings of the data set; made from `source`.
        executor: writes shards; its progress counts images.
        threads: number of threads that decode and encode the images of a shard.
        restart: discard the work of an interrupted call.
        while_listing: entered while the source is listed and unpacked, with the folder where that happens.
        on_estimate: called with the estimate, after the source is indexed and before the first shard is written.

    Raises:
        UserError: the output exists and is not this data set, another command is writing it, an image cannot be
            decoded, or the disk is full or fails. Complete shards are kept.
    """
    output = replaceable(output)
    _check_outside(source, output)
    if not is_free(output):
        with explain_os_errors(output):
            return PrepareResult(_check_existing(source, output, spec, executor), already_there=True)
    with explain_os_errors(output), warnings.catch_warnings(), workspace.claim(output, spec, restart) as folder:
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; what counts is whether the image decodes
        with while_listing(folder.path):
            index = folder.index(lambda: list_images(source, folder.scratch, executor))
        manifest = _write(folder, index, spec, executor, threads, on_estimate)
        manifest = manifest.model_copy(update={"name": output.name})
        folder.finish(manifest, output)
    return PrepareResult(manifest, already_there=False)


def _check_outside(source: ImageSource, output: Path) -> None:
    """Raises UserError if the output lies where the source's images do: it would be listed as one of their classes."""
    root = Path(source.location)
    if not storage.is_remote(source.location) and root.is_dir() and output.is_relative_to(root.resolve()):
        inside = output.relative_to(root.resolve()).parts
        if inside and inside[0] in SPLIT_FOLDERS:
            raise UserError(f"{output} lies among the images of {source.location}: choose an output outside of it")


def _check_existing(source: ImageSource, output: Path, spec: PrepareSpec, executor: Executor) -> Manifest:
    """The manifest of the data set in `output`, if it has the same source and settings."""
    if not (output / MANIFEST_FILE).exists():
        raise UserError(f"{output} already exists and is not a prepared data set: choose another output")
    try:
        existing = load_manifest(output)
    except UserError as error:
        raise UserError(f"{output} already exists, but is incomplete: delete it first ({error})") from None
    same = existing.source.options == spec.options() and existing.source.kind == spec.kind
    if same and existing.seed == spec.seed:
        beside = output.parent if os.access(output.parent, os.W_OK) else None  # a finished data set may be read-only
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=beside) as scratch:
            same = list_images(source, Path(scratch), executor).digest() == existing.source.digest
        if same:
            return existing
    options = ", ".join(f"{name} {value}" for name, value in existing.source.options.items())
    raise UserError(
        f"{output} already holds another data set (source {existing.source.location}, seed {existing.seed}, "
        f"{options}): choose another output, or delete it first"
    )


def _write(
    folder: PrepareWorkspace,
    index: ImageIndex,
    spec: PrepareSpec,
    executor: Executor,
    threads: int,
    on_estimate: Callable[[Estimate], None],
) -> Manifest:
    """Writes the missing shards; returns the manifest without its name."""
    records = {shard: folder.record(shard.split, shard.number) for shard in plan(index, spec)}
    missing = [shard for shard, record in records.items() if record is None]
    if missing:
        estimate = _estimate(folder.path, index, spec, missing, executor.count * threads)
        on_estimate(estimate._replace(passed_over=index.passed_over))
        if estimate.bytes > estimate.free_bytes:
            raise UserError(
                f"the data set needs about {estimate.bytes / 1e9:.1f} GB, but {folder.path.parent} has "
                f"{estimate.free_bytes / 1e9:.1f} GB free: free disk space, or lower --max-side or --quality"
            )
    allowed = spec.damaged_allowed(index.samples())
    left_out: list[LeftOut] = []
    for shard, new in executor.map(WriteShard(folder.path, spec, threads, allowed), missing):
        records[shard] = new
        left_out += new.left_out
        shard_writer.check_allowed(left_out, allowed)
    written = {shard: record for shard, record in records.items() if record}
    for shard, record in written.items():
        index = index.with_sizes(shard.split, record.changed)
    return _describe(index, spec, written)


def plan(index: ImageIndex, spec: PrepareSpec) -> list[ShardPlan]:
    """The shards of a data set."""
    size = spec.shard_samples
    return [
        ShardPlan(split, number, first, min(first + size, table.num_rows))
        for split in SPLITS
        if (table := index.splits.get(split)) is not None
        for number, first in enumerate(range(0, table.num_rows, size))
    ]


def _estimate(folder: Path, index: ImageIndex, spec: PrepareSpec, missing: list[ShardPlan], parallel: int) -> Estimate:
    """The estimate for missing shards, from images of all of them; damaged images are ignored."""
    count = sum(shard.end - shard.first for shard in missing)
    probed = [shard_writer.probe(index, spec, shard, PROBES * (shard.end - shard.first) // count) for shard in missing]
    sizes = [size for found in probed for size in found.sizes]
    per_image = sum(found.seconds for found in probed) / max(1, len(sizes))
    size = int((np.mean(sizes or [0]) + PER_SAMPLE) * count)
    return Estimate(count, size, per_image * count / parallel, shutil.disk_usage(folder).free)


def _describe(index: ImageIndex, spec: PrepareSpec, records: dict[ShardPlan, ShardRecord]) -> Manifest:
    splits = {
        split: _describe_split([records[each] for each in records if each.split == split]) for split in index.splits
    }
    empty = [name for name, split in splits.items() if split.samples == 0]
    if empty:
        raise UserError(f"the {empty[0]} split has no image that can be decoded: check the source")
    sides = [side for record in records.values() for side in record.sides if side]
    return Manifest(
        format_version=FORMAT_VERSION,
        name="",
        classes=index.classes,
        splits=splits,
        encoding=spec.encoding,
        max_side=max(sides),
        min_side=min(sides),
        seed=spec.seed,
        source=Source(kind=spec.kind, location=spec.location, digest=index.digest(), options=spec.options()),
        tools=installed_versions(_TOOLS),
    )


def _describe_split(records: list[ShardRecord]) -> Split:
    return Split(
        samples=sum(record.file.samples for record in records if record.file),
        samples_per_class=np.sum([record.samples_per_class for record in records], axis=0).tolist(),
        bytes=sum(record.content_bytes for record in records),
        untouched=sum(record.untouched for record in records),
        raw=sum(record.raw for record in records),
        files=[record.file for record in records if record.file],
        parts=[record.part for record in records if record.part],
        left_out=[image for record in records for image in record.left_out],
    )
