"""A subset of a source: some of its classes, and a limited number of images of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.common.counter_rng import Purpose, uniform
from data_prep.common.errors import UserError
from data_prep.common.parallel import Executor
from data_prep.format import class_names
from data_prep.format.manifest import SplitName
from data_prep.sources.image_index import BATCH_ROWS, IMAGES, ImageIndex, map_table, pick, write_table
from data_prep.sources.registry import ImageSource, list_images


class Selection:
    """Some classes of a source, renumbered in their order, and a random choice of their images.

    Args:
        source: the complete source.
        classes: ids or names; by default all classes.
        per_class: largest number of training images of each class; by default all.
        validation_per_class: largest number of validation images of each class; by default all.
        seed: seed of the choice.
    """

    def __init__(
        self,
        source: ImageSource,
        classes: tuple[str, ...] = (),
        per_class: int | None = None,
        validation_per_class: int | None = None,
        seed: int = 0,
    ) -> None:
        self._source, self._classes, self._seed = source, classes, seed
        self._limits: dict[SplitName, int | None] = {"train": per_class, "validation": validation_per_class}
        self.kind, self.location = source.kind, source.location
        limits = {f"limit_{split}": limit for split, limit in self._limits.items() if limit is not None}
        chosen: dict[str, int | float | str] = {"classes": ",".join(classes)} if classes else {}
        self.options: dict[str, int | float | str] = {**source.options, **chosen, **limits}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """The chosen images.

        Raises:
            UserError: there is no such class, or a split has no images of the classes.
        """
        whole = list_images(self._source, scratch, executor)
        chosen = [class_names.find(whole.classes, name) for name in self._classes] or whole.classes
        kept = sorted({each.index for each in chosen})
        chosen_classes = [whole.classes[old].model_copy(update={"index": new}) for new, old in enumerate(kept)]
        renumbered = np.full(len(whole.classes), -1, np.int32)
        renumbered[kept] = np.arange(len(kept))
        tables: dict[SplitName, pa.Table] = {}
        for split, table in whole.splits.items():
            path = scratch / f"{split}-chosen.arrow"
            write_table(self._choose(table, split, renumbered), path)
            tables[split] = map_table(path)
        return ImageIndex(chosen_classes, tables, whole.passed_over)

    def _choose(self, table: pa.Table, split: SplitName, renumbered: np.ndarray) -> Iterator[pa.RecordBatch]:
        labels = renumbered[table["label"].to_numpy()]
        rows = np.flatnonzero(labels >= 0)
        limit = self._limits[split]
        if limit is not None:
            chance = uniform(1, self._seed, Purpose.SELECTION, rows)[:, 0]
            by_class = rows[np.lexsort((chance, labels[rows]))]
            place = np.arange(len(by_class)) - np.searchsorted(labels[by_class], labels[by_class])
            rows = np.sort(by_class[place < limit])
        if len(rows) == 0:
            raise UserError(f"the {split} split of {self.location} has no images of the chosen classes")
        for first in range(0, len(rows), BATCH_ROWS):
            part = rows[first : first + BATCH_ROWS]
            chosen = pick(table, part).set_column(0, IMAGES.field("label"), pa.array(labels[part], pa.int32()))
            yield from chosen.to_batches()
