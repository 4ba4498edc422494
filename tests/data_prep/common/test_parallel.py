"""Parallel calls: the death of a helper process on a node does not end them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

PROGRAM = """
import os, sys, time
from pathlib import Path

import psutil

from data_prep.common.parallel import RayExecutor
from data_prep.common.ray_cluster import connect

killed, result = Path(sys.argv[1]), Path(sys.argv[2])


def square(number, advance):
    try:
        os.close(os.open(killed, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pass
    else:
        [counter] = [each for each in psutil.process_iter() if each.name().startswith("ray::_Counter")
                     and each.ppid() == os.getppid()]
        counter.kill()
        counter.wait()
    advance(1)
    return number**2


with connect(None):
    result.write_text(str(sorted(RayExecutor(2).map(square, range(6)))))  # Ray may print to the terminal
"""


@pytest.mark.slow
def test_the_process_that_counts_progress_may_die_with_its_node(tmp_path: Path) -> None:
    killed, result = tmp_path / "killed", tmp_path / "result"
    command = [sys.executable, "-c", PROGRAM, str(killed), str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert killed.exists() and result.read_text() == "[0, 1, 4, 9, 16, 25]"
