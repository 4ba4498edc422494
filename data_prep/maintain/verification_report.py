"""Report of a verification: the problems that were found, up to LISTED of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from data_prep.format.manifest import Manifest

LISTED = 1000
"""Largest number of problems that are kept; all are counted."""


@dataclass(frozen=True)
class Problem:
    """One difference between a data set and its manifest."""

    file: str
    """Its name in the data set's folder."""
    sample: int | None
    """Number of the sample in that file; None if the problem concerns the whole file."""
    reason: str

    def __str__(self) -> str:
        place = self.file if self.sample is None else f"{self.file}, sample {self.sample}"
        return f"{place}: {self.reason}"


@dataclass
class VerificationReport:
    """The result of a verification; thread-safe."""

    manifest: Manifest
    problems: list[Problem] = field(default_factory=list)
    """The first LISTED problems."""
    problem_count: int = 0
    files: int = 0
    """Number of files that were read completely."""
    images: int = 0
    """Number of images that were decoded or, if stored as pixels, have the right size."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, file: str, sample: int | None, reason: str) -> None:
        """Adds a problem."""
        with self._lock:
            self.problem_count += 1
            if len(self.problems) < LISTED:
                self.problems.append(Problem(file, sample, reason))

    def count(self, images: int) -> None:
        """Counts images without a problem."""
        with self._lock:
            self.images += images

    def sort(self) -> None:
        """Sorts the problems by file and sample."""
        self.problems.sort(key=lambda problem: (problem.file, -1 if problem.sample is None else problem.sample))
