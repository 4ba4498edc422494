"""FFCV files whose headers, metadata and tables are damaged, and what the shard reader must make of each of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.codec.decode import JOB, decode_batch
from data_prep.common.errors import UserError
from data_prep.format import beton
from tests.fuzz.jpegs import MOST_PIXELS, seeds

SAMPLES = 6
SIZES = (61, 83)


class ShardFuzzer:
    """Opens damaged files, and reads all of their samples.

    Args:
        folder: for the file, which each case writes.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "fuzzed.beton"
        height, width = SIZES
        raw = np.arange(3 * height * width, dtype=np.uint8)
        jpegs = [content for content in seeds() if len(content) > 2000][: SAMPLES - 1]
        samples = [beton.Sample(content, beton.JPEG, height, width, label) for label, content in enumerate(jpegs)]
        samples.append(beton.Sample(raw, beton.RAW, height, width, SAMPLES))
        beton.write_shard(self._path, samples, SAMPLES)
        content = np.fromfile(self._path, np.uint8)
        table = int(content[: beton.HEADER.itemsize].view(beton.HEADER)[0]["table"])
        first = beton.align(beton.METADATA_START + SAMPLES * beton.METADATA.itemsize, beton.SMALLEST_PAGE)
        self._head = content[: beton.METADATA_START + SAMPLES * beton.METADATA.itemsize]
        self._data, self._gap, self._table = content[first:table], first - len(self._head), content[table:]

    def case(self, random: np.random.Generator) -> None:
        """Writes a damaged file and reads it.

        Raises:
            AssertionError: a sample lies outside of the file's data.
        """
        head, table = self._head.copy(), self._table.copy()
        for _ in range(random.integers(0, 4)):
            _change(table if random.random() < 0.3 else head, random)
        with self._path.open("wb") as file:
            file.write(head)
            file.seek(self._gap, 1)  # a hole, which takes no space
            file.write(self._data)
            file.write(table[: len(table) - int(random.integers(0, 30)) * int(random.random() < 0.1)])
            if random.random() < 0.1:
                file.truncate(int(random.integers(0, file.tell())))
        try:
            shard = beton.Shard(self._path)
            numbers = np.arange(shard.samples)
            found = shard.locate(numbers)
        except UserError:
            return
        assert ((found.start >= 0) & (found.size > 0) & (found.start + found.size <= shard.data_end)).all()
        jobs = np.zeros(1, JOB)
        for number in numbers:
            sample = shard.read(int(number))
            if sample.height * sample.width > MOST_PIXELS or 0 in (sample.height, sample.width):
                continue
            place = int(found.start[number])
            own = np.array(shard.content[place : place + int(found.size[number])])
            size = (sample.height, sample.width)
            jobs[0] = (own.ctypes.data, own.size, sample.mode, *size, 0, 0, *size, 0)
            decode_batch(jobs, np.empty((1, 16, 16, 3), np.uint8))


def _change(part: np.ndarray, random: np.random.Generator) -> None:
    """Changes a number of 1, 2, 4 or 8 bytes of the file's head or table."""
    fields = beton.HEADER.itemsize  # behind them lie kilobytes of fields, of which each byte counts as little
    in_header, length = random.random() < 0.4, int(random.choice([1, 2, 4, 8]))
    place = int(random.integers(0, fields if in_header else len(part)))
    if not in_header and random.random() < 0.8 and len(part) > beton.METADATA_START:
        place = int(random.integers(beton.METADATA_START, len(part)))
    value = random.choice([0, 1, 2, 0x7F, 0x80, 0xFF, random.integers(256)])
    part[place : place + length] = value
