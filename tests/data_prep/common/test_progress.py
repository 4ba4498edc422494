"""Claims about what long operations show, on a terminal and in a file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from data_prep.common import progress

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


@pytest.mark.parametrize(
    "seconds_and_text", [(0.2, "less than 1 s"), (1.4, "1 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_a_duration_is_never_nothing(seconds_and_text: tuple[float, str]) -> None:
    seconds, text = seconds_and_text
    assert progress.format_duration(seconds) == text


def test_lines_of_a_piped_table_end_without_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "a wider column", title="title")
    table.add_row("x", "")
    progress.show(table, Text("word " * 30 + "end"), width=60)
    lines = capsys.readouterr().out.splitlines()
    assert any("x" in line for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []
    assert lines[-1] == "word " * 30 + "end", "texts are not wrapped"


def test_listing_says_how_long_it_has_taken_and_how_much_it_has_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.05)
    with progress.growth_shown("listing photos.zip", tmp_path / "later"):
        time.sleep(0.1)
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / "source.tar").write_bytes(bytes(3000))
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "listing photos.zip: less than 1 s, 0 bytes unpacked and listed"
    assert lines[-1] == "listing photos.zip: less than 1 s, 3 kB unpacked and listed"
