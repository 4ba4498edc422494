"""The kernels for GPUs; `interpreted_kernels` holds what is claimed about them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from benchmarks.geometries import Geometry
from benchmarks.model_traffic import on_gpu_path, training_step
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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_kernel_compiles_for_a_gpu_that_is_not_there(dtype: torch.dtype) -> None:
    triton = pytest.importorskip("triton")
    kinds = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64"}
    compiled: dict[str, int] = {}

    def compile_once(kernel: Any, *args: Any, **kwargs: Any) -> None:
        if kernel.fn.__name__ in compiled:
            return
        given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        constants = {(place,): given[one.name] for place, one in enumerate(kernel.params) if one.is_constexpr}
        signature = {
            one.name: "constexpr"
            if one.is_constexpr
            else kinds[given[one.name].dtype]
            if isinstance(given[one.name], torch.Tensor)
            else "i32"
            if isinstance(given[one.name], int)
            else "fp32"
            for one in kernel.params
        }
        source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
        target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
        compiled[kernel.fn.__name__] = len(triton.compile(source, target=target).asm["cubin"])

    geometry = Geometry(widths=(4, 8), angles=4, first_factorized_block=1, size=120, classes=3, batch=2)
    with training_step(geometry, False, dtype, 2, gpu=True) as step, on_gpu_path(compile_once):
        step()
    defined = {
        name
        for name, value in vars(kernels.load()).items()
        if isinstance(value, triton.runtime.JITFunction) and name not in ("_gradient", "_places")  # parts of others
    }
    assert set(compiled) == defined and all(compiled.values())


def test_cpus_and_compilers_use_none() -> None:
    assert kernels.of(torch.zeros(1)) is None
