"""Sources whose files are named after their split, and whose labels are numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.format.class_names import from_labels
from data_prep.format.manifest import SPLITS, SplitName
from data_prep.sources.image_index import (
    HIDDEN_OR_CLUTTER,
    ImageIndex,
    ImageIndexBuilder,
    IndexedImage,
    PassedOver,
    is_clutter,
)

_NAMES: dict[SplitName, re.Pattern[str]] = {
    "train": re.compile(r"(^|[^a-z])(train)([^a-z]|$)"),
    "validation": re.compile(r"(^|[^a-z])(val|valid|validation|test)([^a-z]|$)"),
}


MOST_CLASSES = 100_000
"""Labels are smaller: larger ones are no numbers of classes, but hashes or identities."""


class LabelledImage(NamedTuple):
    """An image, and the number of its class."""

    label: int
    image: IndexedImage


def files_of_splits(location: str, suffix: str, passed_over: PassedOver) -> dict[SplitName, list[str]]:
    """The locations of the files below a location that end in `suffix`, by split.

    Args:
        passed_over: counts the other files.

    Raises:
        UserError: a split has no files.
    """
    named: dict[SplitName, list[str]] = {split: [] for split in SPLITS}
    tests = []
    for name in (entry.name for entry in storage.list_files(location)):
        if is_clutter(name):
            passed_over.add(HIDDEN_OR_CLUTTER, name)
        elif not name.endswith(suffix):
            passed_over.add(f"no {suffix} file", name)
        elif not (said := _split_of(name)):
            passed_over.add("named after no split", name)
        elif said.word == "test":
            tests.append(name)
        else:
            named[said.split].append(name)
    if not named["validation"]:
        named["validation"] = tests
    else:  # a test split beside a validation split has no labels, as in ImageNet
        for name in tests:
            passed_over.add("a test split beside a validation split", name)
    found = {split: [storage.join(location, *name.split("/")) for name in named[split]] for split in SPLITS}
    for split in SPLITS:
        if not found[split]:
            raise UserError(
                f"{storage.redact(location)} has no {suffix} files of the {split} split: their names must "
                f"hold {'train' if split == 'train' else 'val, validation or test'}"
            )
    return found


class _SplitWord(NamedTuple):
    """A split, and the word of a path that names it."""

    split: SplitName
    word: str


def _split_of(path: str) -> _SplitWord | None:
    """The split that a file's name says, or else the name of the nearest folder that says one."""
    for part in reversed(path.split("/")):
        said = [_SplitWord(split, found[2]) for split in SPLITS if (found := _NAMES[split].search(part))]
        if len(said) == 1:
            return said[0]
        if said:
            raise UserError(f"{path} is named after both splits: rename it")
    return None


def to_index(
    location: str,
    images: Mapping[SplitName, Iterable[LabelledImage]],
    scratch: Path,
    class_names: Path | str | None,
    given: list[str] | None = None,
    passed_over: PassedOver | None = None,
) -> ImageIndex:
    """The index of labelled images.

    Args:
        passed_over: has counted the other files when `images` are exhausted.

    Raises:
        UserError: a label is negative, or has no class.
    """
    builders = {split: ImageIndexBuilder(scratch, split) for split in SPLITS}
    largest = -1
    for split in SPLITS:
        for label, image in images[split]:
            if not 0 <= label < (len(given) if given else MOST_CLASSES):
                raise UserError(f"{image.name} of {location} has label {label}, which no class has")
            largest = max(largest, label)
            builders[split].add(str(label), image)
        if not builders[split].classes:
            raise UserError(f"the {split} split of {location} has no images")
    said = passed_over.sentences() if passed_over else ()
    classes = from_labels(largest + 1, class_names, given)
    order = [str(each.index) for each in classes]
    return ImageIndex(classes, {split: each.table(order) for split, each in builders.items()}, said)
