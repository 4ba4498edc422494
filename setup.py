"""The one compiled module, data_prep.codec._pixels; everything else about the package stands in pyproject.toml."""

import shlex
import subprocess

from setuptools import Extension, setup


def flags_of_libjpeg() -> dict[str, list[str]]:
    """How to compile and link with libjpeg-turbo, by pkg-config; without it, where compilers look by themselves."""
    try:
        done = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "libjpeg"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {"libraries": ["jpeg"]}
    flags = shlex.split(done.stdout)
    return {
        "include_dirs": [flag[2:] for flag in flags if flag.startswith("-I")],
        "library_dirs": [flag[2:] for flag in flags if flag.startswith("-L")],
        "libraries": [flag[2:] for flag in flags if flag.startswith("-l")],
    }


setup(
    ext_modules=[
        Extension(
            "data_prep.codec._pixels",
            [f"data_prep/codec/{name}.c" for name in ("_pixels", "_decode", "_codes", "_resize")],
            depends=[f"data_prep/codec/{name}.h" for name in ("_decode", "_codes", "_resize")],
            # No fused multiply-adds: pixels are the same on every processor.
            extra_compile_args=["-std=gnu11", "-O3", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"],
            **flags_of_libjpeg(),
        )
    ]
)
