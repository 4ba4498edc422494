"""Where images come from: a source lists the images of each split and hands out the bytes of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from data_prep.errors import UserError
from data_prep.manifest import ImageClass

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)

FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "valid", "validation", "test")}
"""What the folder of a split may be called; the first that exists is read."""
NAME_FILES = ("LOC_synset_mapping.txt", "classes.txt")
"""Files beside the splits that may say what people call the classes."""


class ImageSource(Protocol):
    """Images of two splits, with their classes. Reading is done by several threads at once."""

    location: str
    """The folder that is read, or 'generated'."""
    classes: list[ImageClass]
    options: dict[str, int]
    """The settings of the source itself."""

    @property
    def kind(self) -> Literal["folders", "textures"]:
        """What sort of source it is."""

    @property
    def digest(self) -> str:
        """SHA-256 over what the source holds: equal digests and options promise equal images."""

    def labels(self, split: Split) -> Sequence[int]:
        """The class of each image of a split."""

    def describe(self, split: Split, index: int) -> str:
        """Names an image in messages, such as by its path."""

    def read(self, split: Split, index: int) -> bytes:
        """The image file, as it is."""


class ClassFolders:
    """A folder `{train,val}/<class id>/<image files>`, as ImageNet and many others come.

    Every file in a class folder counts as an image, whatever its name, except hidden ones (.DS_Store); what is not an
    image is found when it is read. Classes are numbered in the alphabetical order of their ids.

    Args:
        root: holds a folder `train` and one called val, valid, validation or test.
        names: a text file with a line `id name` for each class; by default a LOC_synset_mapping.txt or classes.txt in
            `root`, for the classes that it knows. Of synonyms between commas, the first is taken.

    Raises:
        UserError: a folder is missing or empty, the splits have different classes, or `names` lacks one.
    """

    kind: Literal["folders"] = "folders"

    def __init__(self, root: Path, names: Path | None = None) -> None:
        if not root.is_dir():
            raise UserError(f"source folder {root} does not exist")
        self.location = str(root.resolve())
        self.options: dict[str, int] = {}
        folders = {split: _split_folder(root, split) for split in SPLITS}
        ids = _class_ids(folders)
        known = _read_names(names) if names else _find_names(root)
        missing = [identity for identity in ids if names and identity not in known]
        if missing:
            raise UserError(f"{names} has no line for {_some(missing)}: add a line 'id name' for every class")
        self.classes = [ImageClass(index=i, id=name, name=known.get(name, name)) for i, name in enumerate(ids)]
        self._files: dict[Split, list[Path]] = {}
        self._labels: dict[Split, list[int]] = {}
        digest = hashlib.sha256(repr([(each.id, each.name) for each in self.classes]).encode())
        for split, folder in folders.items():
            self._files[split], self._labels[split] = [], []
            for label, identity in enumerate(ids):
                for name, size in _list_images(folder / identity):
                    self._files[split].append(folder / identity / name)
                    self._labels[split].append(label)
                    digest.update(repr((split, label, name, size)).encode())
        self.digest = digest.hexdigest()

    def labels(self, split: Split) -> Sequence[int]:
        """The class of each image of a split."""
        return self._labels[split]

    def describe(self, split: Split, index: int) -> str:
        """The path of an image."""
        return str(self._files[split][index])

    def read(self, split: Split, index: int) -> bytes:
        """The bytes of an image file.

        Raises:
            UserError: it cannot be read.
        """
        path = self._files[split][index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _split_folder(root: Path, split: Split) -> Path:
    for name in FOLDERS[split]:
        if (root / name).is_dir():
            return root / name
    raise UserError(f"{root} has no folder {' or '.join(FOLDERS[split])}: put one folder for each class into it")


def _class_ids(folders: dict[Split, Path]) -> list[str]:
    ids = {split: {entry.name for entry in _visible(folder) if entry.is_dir()} for split, folder in folders.items()}
    pairs: tuple[tuple[Split, Split], ...] = (("train", "validation"), ("validation", "train"))
    for split, other in pairs:
        extra = sorted(ids[split] - ids[other])
        if extra:
            raise UserError(
                f"{folders[split]} has classes that {folders[other]} lacks: {_some(extra)}; both need the same"
            )
    if not ids["train"]:
        raise UserError(f"{folders['train']} holds no class folders: put one for each class into it")
    return sorted(ids["train"])


def _list_images(folder: Path) -> list[tuple[str, int]]:
    """Name and size in bytes of each image file in a class folder, by name."""
    entries = sorted(_visible(folder), key=lambda entry: entry.name)
    if not entries:
        raise UserError(f"class folder {folder} has no images: add some, or remove the class from every split")
    for entry in entries:
        if entry.is_dir():
            raise UserError(
                f"class folder {folder} holds another folder, {entry.name}: put the images directly into it"
            )
    return [(entry.name, entry.stat().st_size) for entry in entries]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"folder {folder} cannot be read: {error.strerror}") from None


def _find_names(root: Path) -> dict[str, str]:
    for name in NAME_FILES:
        if (root / name).is_file():
            return _read_names(root / name)
    return {}


def _read_names(path: Path) -> dict[str, str]:
    """The names in a file of lines `id name`, by id."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class names {path} cannot be read: {error}") from None
    pairs = [line.split(maxsplit=1) for line in lines]
    return {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}


def _some(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
