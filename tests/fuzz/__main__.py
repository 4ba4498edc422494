"""Reads damaged files (JPEGs, shards, archives, manifests), and ends with status 1 at the first handled wrongly.

    python -m tests.fuzz [--seconds 60] [--seed 0] [--case N] [--progress FILE]

Case N of a seed is always the same file: `--case N` repeats it alone. Where a case ends the process (a crash, or a
sanitizer's report: see `python -m tests.sanitize`), its number is the last one in `--progress`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.fuzz.archives import ArchiveFuzzer, CompressedFuzzer, ManifestFuzzer
from tests.fuzz.jpegs import JpegFuzzer
from tests.fuzz.shards import ShardFuzzer

FILE_EVERY = 20
"""One case in so many is a shard, an archive or a manifest: each writes a file."""


def fuzz(seed: int, first: int = 0, cases: int = sys.maxsize, seconds: float = 60, progress: Path | None = None) -> int:
    """Runs `cases` cases from `first` on, for at most `seconds`, and returns how many it ran.

    Raises:
        AssertionError: a case was not handled as it should be; says which.
    """
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        kinds = (ShardFuzzer, ArchiveFuzzer, CompressedFuzzer, ManifestFuzzer)
        jpegs, files = JpegFuzzer(), [each(Path(folder)) for each in kinds]
        for ran in range(cases):
            if time.monotonic() > deadline:
                return ran
            number = first + ran
            if progress:
                progress.write_text(f"{number}\n", encoding="utf-8")
            random = np.random.default_rng([seed, number])
            try:
                kind, others = divmod(number, FILE_EVERY)
                (jpegs if others else files[kind % len(files)]).case(random)
            except Exception as error:
                raise AssertionError(f"case {number} of seed {seed}: {type(error).__name__}: {error}") from error
    return cases


def main() -> int:
    """Parses the command line and fuzzes."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--progress", type=Path)
    options = parser.parse_args()
    cases = sys.maxsize if options.case is None else 1
    ran = fuzz(options.seed, options.case or 0, cases, options.seconds, options.progress)
    print(f"{ran} damaged files were handled (seed {options.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
