"""Damaged archives and manifests: what reads them answers, or says in a sentence what is wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.common.errors import UserError
from data_prep.common.parallel import ThreadExecutor
from data_prep.format.manifest import MANIFEST_FILE, load_manifest
from data_prep.sources.registry import open_source
from tests.helpers import datasets
from tests.helpers.images import encode, picture

_ODD = b'\0\xff\x7f\x80\n/.-=*{}[]",:0789'
"""Bytes that mean something to one of the readers."""


class ArchiveFuzzer:
    """Lists the images of damaged tar archives.

    Args:
        folder: for the archive, which each case writes.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._scratch = folder / "fuzzed.tar", folder / "scratch"
        self._scratch.mkdir()
        buffer, image = io.BytesIO(), encode(picture())
        with tarfile.open(fileobj=buffer, mode="w") as file:
            for split in ("train", "val"):
                for name in ("a", "b"):
                    member = tarfile.TarInfo(f"{split}/{name}/0.jpg")
                    member.size = len(image)
                    file.addfile(member, io.BytesIO(image))
                    link = tarfile.TarInfo(f"{split}/{name}/1.jpg")
                    link.type, link.linkname = tarfile.SYMTYPE, "0.jpg"
                    file.addfile(link)
        self._content = np.frombuffer(buffer.getvalue(), np.uint8)

    def case(self, random: np.random.Generator) -> None:
        """Writes a damaged archive and lists it."""
        content = self._content.copy()
        start = int(random.integers(0, len(content) // tarfile.BLOCKSIZE)) * tarfile.BLOCKSIZE
        block = content[start : start + tarfile.BLOCKSIZE]
        damaged = np.frombuffer(_damaged(block.tobytes(), random), np.uint8)[: tarfile.BLOCKSIZE]
        block[: len(damaged)] = damaged
        _repair_checksum(block, random)
        self._path.write_bytes(content[: int(random.integers(len(content))) if random.random() < 0.1 else None])
        with suppress(UserError):
            open_source(str(self._path)).list(self._scratch, ThreadExecutor(1))


class CompressedFuzzer:
    """Lists the images of damaged archives that are unpacked first: zip, and tar by each way of compression.

    Args:
        folder: for the archives.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "compressed"
        self._folder.mkdir()
        image, plain, zipped = encode(picture()), io.BytesIO(), io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w") as file, zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as other:
            for name in ("train/a/0.jpg", "train/b/0.jpg", "val/a/0.jpg", "val/b/0.jpg"):
                member = tarfile.TarInfo(name)
                member.size = len(image)
                file.addfile(member, io.BytesIO(image))
                other.writestr(name, image)
        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": _by_zstd}
        self._contents = {f"tar.{name}": function(plain.getvalue()) for name, function in compress.items()}
        self._contents["zip"] = zipped.getvalue()

    def case(self, random: np.random.Generator) -> None:
        """Writes a damaged archive, unpacks and lists it."""
        suffix = str(random.choice(list(self._contents)))
        path, scratch = self._folder / f"fuzzed.{suffix}", self._folder / "scratch"
        path.write_bytes(_damaged(self._contents[suffix], random))
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        with suppress(UserError):
            open_source(str(path)).list(scratch, ThreadExecutor(1))


def _by_zstd(content: bytes) -> bytes:
    compressed: bytes = pa.compress(content, "zstd", asbytes=True)
    return compressed


class ManifestFuzzer:
    """Reads damaged manifests of a data set.

    Args:
        folder: for the data set.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "set"
        datasets.write_dataset(self._folder)
        self._content = (self._folder / MANIFEST_FILE).read_bytes()

    def case(self, random: np.random.Generator) -> None:
        """Writes a damaged manifest and reads it."""
        (self._folder / MANIFEST_FILE).write_bytes(_damaged(self._content, random))
        with suppress(UserError):
            load_manifest(self._folder)


def _damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The bytes with a few changed, added, removed or cut off."""
    result = bytearray(content)
    for _ in range(int(random.integers(1, 6))):
        place = int(random.integers(0, len(result) + 1))
        kind, length = random.integers(4), int(random.choice([1, 2, 8, 64]))
        odd = bytes(random.choice(list(_ODD), length).astype(np.uint8))
        if kind == 0:
            result[place : place + length] = odd
        elif kind == 1:
            result[place:place] = odd
        elif kind == 2:
            del result[place : place + length]
        elif random.random() < 0.2:
            del result[place:]
    return bytes(result)


def _repair_checksum(header: np.ndarray, random: np.random.Generator) -> None:
    """Makes most headers valid again: readers look at the fields of those alone."""
    if random.random() < 0.8:
        header[148:156] = ord(" ")
        header[148:156] = np.frombuffer(b"%06o\0 " % int(header.sum(dtype=np.int64)), np.uint8)
