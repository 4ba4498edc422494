"""On what a run was computed: versions, hardware, and the state of the source code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("phasecollapse", "torch", "ray", "mlflow", "ffcv", "numpy")


def describe() -> dict[str, str]:
    """Versions and hardware of this process, as ``{"version.torch": …, "hardware.cpu": …}``."""
    versions = {f"version.{name}": metadata.version(name) for name in PACKAGES}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        **versions,
        "version.python": platform.python_version(),
        "hardware.host": platform.node(),
        "hardware.system": platform.platform(),
        "hardware.cpu": _cpu_model(),
        "hardware.cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "hardware.memory_gib": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}",
        "hardware.gpus": ", ".join(gpus) or "none",
    }


def git_state(folder: Path) -> dict[str, str]:
    """Commit of the repository around `folder`, and whether its files were changed; nothing where there is none."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git.changed": "yes" if changed else "no"}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
