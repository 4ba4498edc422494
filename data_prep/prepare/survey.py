"""Surveys the images of a source: each is converted as by `prepare`, damaged ones are listed, and nothing is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.common.files import explain_os_errors
from data_prep.common.parallel import Advance, Executor
from data_prep.format.manifest import LeftOut
from data_prep.prepare import workspace
from data_prep.prepare.dataset_writer import plan
from data_prep.prepare.shard_writer import ShardPlan, converted_images
from data_prep.prepare.spec import PrepareSpec
from data_prep.prepare.workspace import PrepareWorkspace
from data_prep.sources.image_index import ImageIndex
from data_prep.sources.registry import ImageSource, list_images


class Survey(NamedTuple):
    """What a survey has found."""

    images: int
    damaged: list[LeftOut]
    """In the order of their names."""


def survey(
    source: ImageSource,
    spec: PrepareSpec,
    executor: Executor,
    scratch: Path,
    *,
    threads: int = 1,
    while_listing: Callable[[Path], AbstractContextManager[None]] = lambda folder: nullcontext(),
    on_index: Callable[[ImageIndex], None] = lambda index: None,
) -> Survey:
    """Converts every image of `source` once, and lists those that cannot be read or decoded.

    Args:
        spec: settings of the data set that would be prepared.
        executor: its progress counts images.
        scratch: folder for what has to be unpacked, which is removed.
        threads: number of threads that decode the images of a shard.
        while_listing: as for :func:`data_prep.prepare.dataset_writer.prepare`.
        on_index: called with the index of the source before the first image is read.

    Raises:
        UserError: the source is missing or cannot be listed, or storage does not answer.
    """
    with explain_os_errors(scratch), tempfile.TemporaryDirectory(prefix=".check-", dir=scratch) as folder:
        space = PrepareWorkspace(Path(folder))
        with while_listing(space.path):
            index = space.index(lambda: list_images(source, space.scratch, executor))
        on_index(index)
        damaged = [
            each for found in executor.map(_CheckShard(space.path, spec, threads), plan(index, spec)) for each in found
        ]
        return Survey(index.samples(), sorted(damaged, key=lambda each: each.image))


@dataclass(frozen=True)
class _CheckShard:
    """The task that converts the images of a shard, and keeps none."""

    folder: Path
    """The work folder, which every node can access."""
    spec: PrepareSpec
    threads: int

    def __call__(self, shard: ShardPlan, advance: Advance) -> list[LeftOut]:
        damaged = []
        with converted_images(workspace.load_index(self.folder), self.spec, shard, self.threads) as found:
            for each in found:
                advance(1)
                if isinstance(each.stored, LeftOut):
                    damaged.append(each.stored)
        return damaged
