"""Claims about clusters: nothing that a command started there outlives it, and nothing of anybody else ends."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from data_prep.common.errors import UserError
from data_prep.common.ray_cluster import connect
from data_prep.common.ray_cluster.processes import MARK
from tests.helpers.checkout import ROOT
from tests.helpers.ray_cluster import external_cluster

pytestmark = pytest.mark.slow

PROGRAM = """
import atexit, os, signal, sys, time
from pathlib import Path
import ray
from data_prep.common.ray_cluster import connect

address, written, left = sys.argv[1] or None, Path(sys.argv[2]), Path(sys.argv[3])


class Stuck:
    '''Its process does not end when Ray asks it to.'''
    def __init__(self):
        atexit.register(time.sleep, 600)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    def pid(self):
        return os.getpid()
    def leave(self):
        ray.actor.exit_actor()


class Other(Stuck):
    pass


with connect(address):
    kind = Other if left.name == "wait" else Stuck
    actors = [ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(kind).remote() for _ in range(2)]
    ids = ray.get([actor.pid.remote() for actor in actors])
    if kind is Stuck:
        for actor in actors:
            try:
                ray.get(actor.leave.remote())
            except ray.exceptions.RayError:
                pass  # as far as Ray knows, its process is gone
    written.with_suffix(".part").write_text(" ".join(map(str, ids)))
    written.with_suffix(".part").rename(written)
    while left.name == "wait" and not left.exists():
        time.sleep(0.1)
"""


def start(address: str, written: Path, left: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, address, str(written), str(left)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def processes(written: Path) -> list[psutil.Process]:
    return [psutil.Process(int(number)) for number in written.read_text().split() if psutil.pid_exists(int(number))]


def wait_until(condition: Callable[[], bool], program: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert program.poll() is None and time.monotonic() < deadline, program.stderr and program.stderr.read()
        time.sleep(0.1)


def test_a_cluster_of_our_own_leaves_no_process_even_if_one_does_not_exit(tmp_path: Path) -> None:
    program = start("", tmp_path / "ids", tmp_path / "leave")
    wait_until((tmp_path / "ids").exists, program)
    _, errors = program.communicate(timeout=300)
    assert program.returncode == 0, errors
    assert not processes(tmp_path / "ids")


def test_a_cluster_that_was_up_before_keeps_nothing_of_a_command_and_everything_of_others(tmp_path: Path) -> None:
    with external_cluster(cpus=4) as cluster:
        other = start(cluster.address, tmp_path / "others", tmp_path / "wait", cluster.environment)
        wait_until((tmp_path / "others").exists, other)
        program = start(cluster.address, tmp_path / "ids", tmp_path / "leave", cluster.environment)
        wait_until((tmp_path / "ids").exists, program)
        _, errors = program.communicate(timeout=300)
        assert program.returncode == 0, errors
        assert not processes(tmp_path / "ids")
        theirs = processes(tmp_path / "others")
        assert len(theirs) == 2 and len({process.environ()[MARK] for process in theirs}) == 1
        (tmp_path / "wait").touch()
        other.communicate(timeout=300)
        assert not processes(tmp_path / "others")


def test_the_password_in_the_address_of_a_cluster_is_not_shown() -> None:
    with pytest.raises(UserError) as refused, connect("none://user:secret@host:1"):
        pass
    assert str(refused.value).startswith("the Ray cluster at none://host:1 cannot be joined: ")
