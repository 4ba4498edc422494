"""Class folders, {train,val}/CLASS/images, the layout of ImageNet and many others: on a disk or in object storage."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from data_prep.common import storage
from data_prep.common.errors import UserError, printable
from data_prep.common.parallel import Executor
from data_prep.format import class_names
from data_prep.format.manifest import SPLITS, SplitName
from data_prep.sources.image_index import (
    HIDDEN_OR_CLUTTER,
    NO_FILES,
    ImageIndex,
    ImageIndexBuilder,
    IndexedImage,
    PassedOver,
    is_clutter,
)
from data_prep.sources.registry import ImageSource

FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("val", "valid", "validation", "test"),
}
"""Names that the folder of a split may have; the first that exists is read."""
SPLIT_FOLDERS = {name for names in FOLDERS.values() for name in names}
"""All names of folders of splits."""
NAME_FILES = ("LOC_synset_mapping.txt", "classes.txt")
"""Files beside the splits that may hold human-readable names of the classes."""


ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tar.zst", ".tzst", ".zip")
"""Suffixes of archives that may hold class folders."""


def open_source(location: str, class_names: Path | str | None = None) -> ImageSource:
    """The class folders at a location, which may be a tar or zip archive of them."""
    from data_prep.sources.archives import ArchivedFolders  # which imports this module

    is_archive = location.partition("?")[0].lower().endswith(ARCHIVES)
    return (ArchivedFolders if is_archive else ClassFolders)(location, class_names)


class ClassFolders:
    """A folder `{train,val}/<class id>/<image files>`.

    Every file in a class folder counts as an image, with any name, except hidden files and known clutter; a file that
    is no image is reported when it is read. Classes are numbered in the alphabetical order of their ids.

    Args:
        root: path or address of the folder that holds a folder `train` and one called val, valid, validation or test.
        names: a text file with a line `id name` for each class; by default a LOC_synset_mapping.txt or classes.txt in
            `root`, for the classes that it lists, and ImageNet's names for its ids.
    """

    kind = "folders"

    def __init__(self, root: str | Path, names: Path | str | None = None) -> None:
        self._root = str(root) if storage.is_remote(str(root)) else str(Path(root).resolve())
        self._names = names
        self.location = storage.redact(self._root)
        self.options: dict[str, int | float | str] = {}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """The images of both splits.

        Raises:
            UserError: a folder is missing or empty, the splits have different classes, or `names` lacks one.
        """
        if not storage.is_folder(self._root):
            raise UserError(f"source folder {self.location} does not exist")
        if storage.is_remote(self._root):
            found = (
                IndexedImage(entry.name, storage.join(self._root, *entry.name.split("/")), 0, entry.size)
                for entry in storage.list_files(self._root)
            )
            return arrange(self.location, found, scratch, self._names, self._remote_names)
        root = Path(self._root)
        known = next((class_names.read_names(root / name) for name in NAME_FILES if (root / name).is_file()), {})
        passed_over = PassedOver()
        return arrange(self.location, _walk(root, passed_over), scratch, self._names, lambda: known, passed_over)

    def _remote_names(self) -> dict[str, str]:
        there = storage.list_names(self._root)
        name = next((name for name in NAME_FILES if name in there), None)
        return class_names.parse_names(storage.read_all(storage.join(self._root, name)), name) if name else {}


def arrange(
    location: str,
    found: Iterable[IndexedImage],
    scratch: Path,
    names: Path | str | None,
    known: Callable[[], dict[str, str]] = dict,
    passed_over: PassedOver | None = None,
) -> ImageIndex:
    """The index of images whose paths are SPLIT/CLASS/FILE; other files are passed over.

    Args:
        known: called afterwards for names of classes, by id.
        passed_over: counts them, and those that were passed over before.

    Raises:
        UserError: a split has no images, splits have different classes, images lie too deep, or `names` lacks a class.
    """
    builders: dict[str, ImageIndexBuilder] = {}
    passed_over = passed_over or PassedOver()
    flat: dict[str, str] = {}  # an image right in the folder of a split
    for image in found:
        split, *rest = image.name.split("/")
        if is_clutter(image.name):
            passed_over.add(HIDDEN_OR_CLUTTER, image.name)
            continue
        if len(rest) < 2 or split not in SPLIT_FOLDERS:
            if image.name.rpartition("/")[2] not in NAME_FILES:
                passed_over.add("in no folder of a class", image.name)
                if rest:
                    flat.setdefault(split, image.name)
            continue
        if len(rest) > 2:
            raise UserError(
                f"class folder {location}/{split}/{rest[0]} holds another folder, {rest[1]}: put the images directly "
                "into it"
            )
        if split not in builders:
            builders[split] = ImageIndexBuilder(scratch, split)
        builders[split].add(rest[0], image)
    chosen: dict[SplitName, ImageIndexBuilder] = {}
    for split_name in SPLITS:
        folder = next((name for name in FOLDERS[split_name] if name in builders), None)
        if folder is None:
            wanted = " or ".join(FOLDERS[split_name])
            remedy = "put one folder for each class into it" + ", of images that are not trained on" * (
                split_name != "train"
            )
            if not builders:
                remedy += ", or say with --kind what the source is, such as parquet or webdataset"
            if image_name := next((flat[name] for name in FOLDERS[split_name] if name in flat), None):
                remedy += f"; {printable(image_name)} is in none"
                remedy += " (Kaggle's classes are in LOC_val_solution.csv)" * ("ILSVRC2012_val" in image_name)
            raise UserError(f"{location} has no folder {wanted} with images: {remedy}")
        chosen[split_name] = builders[folder]
    ids = _class_ids(location, chosen)
    given = class_names.read_names(names) if names else {}
    missing = [identity for identity in ids if names and identity not in given]
    if missing:
        raise UserError(f"{names} has no line for {_some(missing)}: add a line 'id name' for every class")
    for each in chosen.values():
        for name in each.keep_last():  # unpacking an archive keeps the last one, too
            passed_over.add("replaced by later ones of the same name", name)
    tables = {split: each.table(ids) for split, each in chosen.items()}
    return ImageIndex(class_names.number(ids, given or known()), tables, passed_over.sentences())


def _class_ids(location: str, splits: dict[SplitName, ImageIndexBuilder]) -> list[str]:
    ids = {split: builder.classes for split, builder in splits.items()}
    pairs: tuple[tuple[SplitName, SplitName], ...] = (("train", "validation"), ("validation", "train"))
    for split, other in pairs:
        extra = sorted(ids[split] - ids[other])
        if extra:
            raise UserError(
                f"the {split} images of {location} have classes that its {other} images lack: {_some(extra)}; both "
                "need the same, with images"
            )
    return sorted(ids["train"])


def _walk(root: Path, passed_over: PassedOver) -> Iterable[IndexedImage]:
    """The files of a local folder; raises a UserError at an empty class folder."""
    for names in FOLDERS.values():
        split = next((name for name in names if (root / name).is_dir()), None)
        for folder in _entries(root / split) if split else ():
            if _kind(folder) != stat.S_IFDIR or is_clutter(folder.name):
                yield IndexedImage(f"{split}/{folder.name}", folder.path, 0, 0)  # to be counted
                continue
            listed = 0
            for entry in _entries(Path(folder.path)):
                name = f"{split}/{folder.name}/{entry.name}"
                kind = _kind(entry)
                if kind == stat.S_IFDIR:
                    yield IndexedImage(f"{name}/…", entry.path, 0, 0)
                elif kind != stat.S_IFREG:  # reading a pipe would wait for ever
                    passed_over.add(NO_FILES, name)
                else:
                    listed += not is_clutter(name)
                    yield IndexedImage(name, entry.path, 0, entry.stat().st_size)
            if not listed:
                raise UserError(
                    f"class folder {folder.path} has no images: add some, or remove the class from every split"
                )


def _kind(entry: os.DirEntry[str]) -> int:
    """What an entry, or the end of a link, is; 0 if a link leads nowhere or in a circle."""
    try:
        return stat.S_IFMT(entry.stat().st_mode)
    except OSError:
        return 0


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
