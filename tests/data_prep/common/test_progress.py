"""Claims about what long operations show, on a terminal and in a file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

PROGRAM = """
from data_prep.common import progress
with progress.image_progress(3) as on_images:
    for number in range(3):
        print(f"row {number}", flush=True)
        on_images(1)
"""
STAGES = """
from data_prep.common import progress
with progress.phase_display() as on_phase:
    on_phase("tracing the network")
    print("row", flush=True)
"""


def run(program: str, *, terminal: bool) -> tuple[str, str]:
    """Standard output, which is a file, and standard error, which is a terminal or a file."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=theirs, check=True, env=environment
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # what Linux answers at the end of a terminal
        pass
    finally:
        os.close(ours)
    return done.stdout.decode(), shown.decode()


@pytest.mark.parametrize("terminal", [True, False])
def test_rows_go_into_the_file_and_the_bar_to_a_terminal_alone(terminal: bool) -> None:
    rows, shown = run(PROGRAM, terminal=terminal)
    assert rows == "row 0\nrow 1\nrow 2\n"
    assert ("3/3" in shown) == terminal
    assert "row" not in shown


@pytest.mark.parametrize("terminal", [True, False])
def test_what_is_being_done_is_shown_on_a_terminal_alone(terminal: bool) -> None:
    rows, shown = run(STAGES, terminal=terminal)
    assert rows == "row\n"
    assert ("tracing the network" in shown) == terminal
    assert "row" not in shown
