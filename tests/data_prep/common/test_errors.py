"""Claims about text from outside in sentences for users."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.errors import first_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 😀 [bold]", "plain ü 😀 [bold]"),
        ("a\x1b[31mred", "a\\x1b[31mred"),
        ("two\nlines\r", "two\\nlines\\r"),
        ("caf\udce9", "caf\\udce9"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text, keep="\n") == shown.replace("\\n", "\n")


def test_errors_and_names_of_files_reach_any_terminal(tmp_path: Path) -> None:
    name = tmp_path / "a\x1b[31m\udce9.yaml"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "train", name],
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii:strict"},
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert b"a\\x1b[31m" in done.stderr and b"\x1b" not in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "MemoryError"),
        (ValueError("one.\ntwo"), "one"),
        (OSError(28, "No space left on device", "/a/b"), "No space left on device"),
        (RuntimeError("\n  late\n"), "late"),
    ],
)
def test_every_error_has_a_first_line(error: Exception, line: str) -> None:
    assert first_line(error) == line
