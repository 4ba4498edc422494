"""Claims about memory that stays with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from pipeline.runtime import malloc

FAULTS = """
import resource, sys, threading, torch
from pipeline.runtime import malloc
if "tune" in sys.argv:
    assert malloc.keep_freed_memory()
torch.set_num_threads(1)

def work():
    signal = torch.ones(40 << 18)  # 40 MiB

    def repeat(times):
        for _ in range(times):
            sum(signal * 2 + signal for _ in range(2))

    repeat(3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    repeat(5)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)  # Ray trains in a thread that is not the main one
thread.start()
thread.join()
"""


def faults(*arguments: str, environment: dict[str, str] | None = None) -> int:
    """Page faults of a few operations on large tensors, in a fresh process."""
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these knobs")
def test_large_buffers_are_reused_in_any_thread() -> None:
    untouched = faults()
    assert untouched > 100_000, "10,240 pages a buffer"
    assert faults("tune") < untouched / 5
    assert faults(environment=malloc.ENVIRONMENT) < untouched / 5
