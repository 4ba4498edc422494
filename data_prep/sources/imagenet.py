"""The ILSVRC2012 archives as downloaded: a tar with a tar for each class, a flat tar, and the development kit.

The kit numbers classes in an order of its own: `meta.mat` maps numbers to WordNet ids, and a text file lists the number
of each validation image. Here, as in all sources of class folders, classes are numbered alphabetically by their ids.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.parallel import Advance, Executor
from data_prep.format import class_names
from data_prep.format.manifest import SplitName
from data_prep.sources.archives import scan
from data_prep.sources.image_index import ImageIndex, ImageIndexBuilder, IndexedImage, PassedOver
from data_prep.sources.registry import FolderNames

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG$")


def recognizes(folder: FolderNames) -> bool:
    """Whether a folder holds the training archive or the development kit."""
    return TRAIN in folder.names or DEVKIT in folder.names


def open_source(location: str, class_names: Path | str | None = None) -> ImageNetArchives:
    """The three archives in a folder."""
    return ImageNetArchives(location, class_names)


class _ClassArchive(NamedTuple):
    """The archive of a class, inside the archive of all."""

    identity: str
    archive: str
    start: int
    end: int


class ImageNetArchives:
    """A folder or address with the three archives; images are read in place, without unpacking.

    Args:
        folder: holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz.
        names: see :class:`data_prep.sources.folders.ClassFolders`.
    """

    kind = "imagenet"

    def __init__(self, folder: str, names: Path | str | None = None) -> None:
        self._folder = folder if storage.is_remote(folder) else str(Path(folder).resolve())
        self._names = names
        self.location = storage.redact(self._folder)
        self.options: dict[str, int | float | str] = {}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """The images of both splits, named as in class folders: train/ID/NAME and val/ID/NAME.

        Raises:
            UserError: an archive is missing, truncated or damaged, or they do not belong together.
        """
        ids, truth = _read_devkit(storage.join(self._folder, DEVKIT))
        train, validation = ImageIndexBuilder(scratch, "train"), ImageIndexBuilder(scratch, "validation")
        passed_over = PassedOver()
        archives = [
            _ClassArchive(Path(found.name).stem, found.file, found.offset, found.offset + found.size)
            for found in scan(storage.join(self._folder, TRAIN))
            if found.name.endswith(".tar")
        ]
        for identity, images in executor.map(_scan_class, archives):
            if identity not in set(ids.values()):
                raise UserError(
                    f"{self.location}/{TRAIN} has a class {identity} that the development kit does not list"
                )
            for image in passed_over.filter(images):
                train.add(identity, image._replace(name=f"train/{identity}/{image.name}"))
        for image in passed_over.filter(scan(storage.join(self._folder, VALIDATION))):
            identity = self._identity(image, ids, truth)
            name = image.name.rsplit("/", 1)[-1]
            validation.add(identity, image._replace(name=f"val/{identity}/{name}"))
        if not train.classes or not validation.classes:
            raise UserError(
                f"{self.location}/{VALIDATION if train.classes else TRAIN} holds no images: download it again"
            )
        extra = sorted(validation.classes - train.classes)
        if extra:
            raise UserError(f"{self.location}/{TRAIN} lacks classes of the validation images, such as {extra[0]}")
        order = sorted(train.classes)
        known = class_names.read_names(self._names) if self._names else {}
        tables: dict[SplitName, pa.Table] = {"train": train.table(order), "validation": validation.table(order)}
        return ImageIndex(class_names.number(order, known), tables, passed_over.sentences())

    def _identity(self, image: IndexedImage, ids: dict[int, str], truth: Sequence[int]) -> str:
        match = _VALIDATION_NAME.search(image.name)
        if match is None or not 1 <= int(match[1]) <= len(truth):
            raise UserError(
                f"{self.location}/{VALIDATION} has {image.name}, whose class the development kit does not list"
            )
        return ids[truth[int(match[1]) - 1]]


def _scan_class(archive: _ClassArchive, advance: Advance) -> tuple[str, list[IndexedImage]]:
    return archive.identity, list(scan(archive.archive, archive.start, archive.end))


def _read_devkit(location: str) -> tuple[dict[int, str], list[int]]:
    """The WordNet id of each number, and the number of each validation image.

    Raises:
        UserError: the kit is missing or damaged.
    """
    name = storage.redact(location)
    try:
        with tarfile.open(fileobj=io.BytesIO(storage.read_all(location)), mode="r:*") as kit:
            files = {wanted: _member(kit, wanted) for wanted in (_META, _TRUTH)}
        ids = _read_synsets(files[_META])
        truth = [int(line) for line in files[_TRUTH].split()]
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{name} is damaged ({storage.first_line(error)}): download it again") from None
    unknown = sorted(set(truth) - set(ids))
    if unknown:
        raise UserError(
            f"{name} is damaged: validation images have the class {unknown[0]}, which meta.mat does not list"
        )
    return ids, truth


def _member(kit: tarfile.TarFile, wanted: str) -> bytes:
    for member in kit:
        if member.isfile() and member.name.endswith(wanted):
            content = kit.extractfile(member)
            return content.read() if content else b""
    raise ValueError(f"it has no {wanted}")


def _read_synsets(content: bytes) -> dict[int, str]:
    """The rows of meta.mat without children: the 1,000 classes, without WordNet's other synsets."""
    from scipy.io import loadmat

    rows: Iterable = loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
    return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows if int(row["num_children"]) == 0}
