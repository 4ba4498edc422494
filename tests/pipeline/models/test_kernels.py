"""The kernels for GPUs; `interpreted_kernels` holds what is claimed about them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pipeline.models import kernels
from tests.pipeline.models import interpreted_kernels


@pytest.mark.slow
def test_the_interpreter_finds_what_cpus_compute() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", interpreted_kernels.__file__]
    done = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]


def test_cpus_and_compilers_use_none() -> None:
    assert kernels.of(torch.zeros(1)) is None
