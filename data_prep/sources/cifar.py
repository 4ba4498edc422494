"""CIFAR-10 in torchvision's layout: a folder cifar-10-batches-py with pickled arrays of pixels."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.common.files import open_regular
from data_prep.common.parallel import Executor
from data_prep.format.manifest import SplitName
from data_prep.sources.image_index import ImageIndex, IndexedImage
from data_prep.sources.labelled import LabelledImage, to_index
from data_prep.sources.registry import FolderNames

FOLDER = "cifar-10-batches-py"
BATCHES: dict[SplitName, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "validation": ("test_batch",),
}
SIDE = 32
_ALLOWED = {("_reconstruct", "multiarray"), ("ndarray", "numpy"), ("dtype", "numpy"), ("encode", "_codecs")}


def recognizes(folder: FolderNames) -> bool:
    """Whether it is the folder cifar-10-batches-py, or holds it."""
    return FOLDER in folder.names or "batches.meta" in folder.names


def open_source(location: str) -> Cifar10:
    """CIFAR-10 in a folder; its classes have the names that come with it."""
    return Cifar10(location)


class Cifar10:
    """A folder that holds cifar-10-batches-py; its images are unpacked to PNG files, which are lossless.

    Unpickling can run any code: here it can create arrays only.
    """

    kind = "cifar10"

    def __init__(self, folder: str) -> None:
        path = Path(folder).resolve()
        self._folder = path if path.name == FOLDER else path / FOLDER
        self.location = str(self._folder)
        self.options: dict[str, int | float | str] = {}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """Unpacks the images of both splits.

        Raises:
            UserError: a file is missing, damaged, or has other contents.
        """
        names = [_text(name) for name in self._load("batches.meta")["label_names"]]
        images = {split: self._unpack(files, scratch / f"{split}.images") for split, files in BATCHES.items()}
        return to_index(self.location, images, scratch, None, names)

    def _unpack(self, files: tuple[str, ...], target: Path) -> Iterator[LabelledImage]:
        with target.open("wb") as output:
            for name in files:
                batch = self._load(name)
                pixels, labels = batch.get("data"), batch.get("labels") or []
                if not isinstance(pixels, np.ndarray) or pixels.shape != (len(labels), 3 * SIDE * SIDE):
                    raise UserError(
                        f"{self._folder / name} does not hold CIFAR-10's pixels and labels: download it again"
                    )
                for number, (row, label) in enumerate(zip(pixels, labels, strict=True)):
                    buffer = io.BytesIO()
                    Image.fromarray(row.reshape(3, SIDE, SIDE).transpose(1, 2, 0)).save(buffer, "PNG")
                    offset = output.tell()
                    output.write(buffer.getvalue())
                    yield LabelledImage(
                        int(label), IndexedImage(f"{name}/{number:05d}", str(target), offset, output.tell() - offset)
                    )

    def _load(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        try:
            with io.BufferedReader(open_regular(path)) as file:
                content = _ArraysOnly(file, encoding="bytes").load()
            return {_text(key): value for key, value in content.items()}
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except Exception as error:  # a damaged pickle raises anything
            raise UserError(f"{path} is damaged, or not a file of CIFAR-10 ({error}): download it again") from None


class _ArraysOnly(pickle.Unpickler):
    """Creates arrays, numbers, strings, lists and dictionaries, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """A class or function that the file names."""
        if (name, module.rsplit(".", 1)[-1]) not in _ALLOWED or module.split(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
