"""The one compiled module; everything else about the package stands in pyproject.toml."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "data_prep._pixels",
            ["data_prep/_pixels.c"],
            libraries=["jpeg", "m"],
            extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra"],
        )
    ]
)
