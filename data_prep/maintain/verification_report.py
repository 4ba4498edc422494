"""What is wrong with a prepared data set, as a list that is bounded."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from data_prep.format.manifest import Manifest

LISTED = 1000
"""Problems that are kept; all are counted."""


@dataclass(frozen=True)
class Problem:
    """One thing that is not as the manifest says."""

    file: str
    """Its name in the data set's folder."""
    sample: int | None
    """Its number in that file; None where the file as a whole is meant."""
    reason: str

    def __str__(self) -> str:
        place = self.file if self.sample is None else f"{self.file}, sample {self.sample}"
        return f"{place}: {self.reason}"


@dataclass
class VerificationReport:
    """What was found; threads may add to it."""

    manifest: Manifest
    problems: list[Problem] = field(default_factory=list)
    """The first LISTED of them."""
    problem_count: int = 0
    files: int = 0
    """How many were read to their end."""
    images: int = 0
    """How many were decoded or, where they are stored as pixels, found to have the right size."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def add(self, file: str, sample: int | None, reason: str) -> None:
        """Notes a problem."""
        with self._lock:
            self.problem_count += 1
            if len(self.problems) < LISTED:
                self.problems.append(Problem(file, sample, reason))

    def count(self, images: int) -> None:
        """Counts images that are as they should be."""
        with self._lock:
            self.images += images

    def sort(self) -> None:
        """Puts the problems into the order of files and samples."""
        self.problems.sort(key=lambda problem: (problem.file, -1 if problem.sample is None else problem.sample))
