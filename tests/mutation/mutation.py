"""One way in which `python -m tests.mutation` breaks the code, with the tests that must notice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutation:
    """One way to break the code."""

    what: str
    """What goes wrong, in words."""
    file: str
    """Relative to the checkout."""
    old: str
    """Text that occurs in `file` exactly once."""
    new: str
    tests: tuple[str, ...]
    """Test files or pytest node ids."""

    @property
    def is_compiled(self) -> bool:
        """Whether `file` is a C source, which takes effect when it is compiled."""
        return self.file.endswith(".c")

    def occurrences(self, root: Path) -> int:
        """How often `old` stands in `file` under `root`; 0 if there is no such file."""
        path = root / self.file
        return path.read_text(encoding="utf-8").count(self.old) if path.exists() else 0
