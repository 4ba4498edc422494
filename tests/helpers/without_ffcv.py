"""Makes a process believe that stock FFCV is not installed; loaded where PHASECOLLAPSE_EXTENSIONS names it."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Any

_version = metadata.version


class _Blocker:
    """Finds no package ffcv."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "ffcv":
            raise ModuleNotFoundError(f"No module named '{name}'")


def _version_without_ffcv(name: str) -> str:
    if name == "ffcv":
        raise metadata.PackageNotFoundError(name)
    return _version(name)


sys.meta_path.insert(0, _Blocker())  # type: ignore[arg-type]
metadata.version = _version_without_ffcv
