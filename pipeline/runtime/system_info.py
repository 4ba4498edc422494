"""The environment of a run: versions, hardware and its load, and the state of the source code."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pynvml
import torch

from data_prep.common.distribution import installed_versions
from data_prep.common.parallel import cores

CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Linux's names of CPU features with bfloat16 multiplication, on x86 and ARM."""
PACKAGES = ("phasecollapse", "torch", "ray", "mlflow", "ffcv", "numpy")


def describe() -> dict[str, str]:
    """Versions and hardware of this process: ``{"version.torch": …, "hardware.cpu": …}``."""
    versions = {f"version.{name}": version for name, version in installed_versions(PACKAGES).items()}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        **versions,
        "version.python": platform.python_version(),
        "hardware.host": platform.node(),
        "hardware.system": platform.platform(),
        "hardware.cpu": _cpu_model(),
        "hardware.cores": str(cores()),
        "hardware.memory_gib": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f}",
        "hardware.gpus": ", ".join(gpus) or "none",
    }


class Load:
    """The load of this machine, by MLflow's names of system metrics.

    CPU and memory are those of the machine, network traffic is counted from when this object is made, and GPUs are all
    that the driver shows, also those of other programs.
    """

    def __init__(self) -> None:
        psutil.cpu_percent()  # the next call gives the mean since this one
        self._traffic = psutil.net_io_counters()
        self._gpus: list[Any] = []
        with suppress(pynvml.NVMLError):  # no driver
            pynvml.nvmlInit()
            self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

    def measure(self) -> dict[str, float]:
        """The mean utilization of the CPUs since the last call, and the state of everything else at this moment."""
        memory, traffic = psutil.virtual_memory(), psutil.net_io_counters()
        load = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            "network_receive_megabytes": (traffic.bytes_recv - self._traffic.bytes_recv) / 1e6,
            "network_transmit_megabytes": (traffic.bytes_sent - self._traffic.bytes_sent) / 1e6,
        }
        for index, gpu in enumerate(self._gpus):
            with suppress(pynvml.NVMLError):  # a GPU need not measure everything
                used = pynvml.nvmlDeviceGetMemoryInfo(gpu)
                load[f"gpu_{index}_memory_usage_megabytes"] = used.used / 1e6
                load[f"gpu_{index}_memory_usage_percentage"] = 100 * used.used / used.total
            with suppress(pynvml.NVMLError):
                load[f"gpu_{index}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
            with suppress(pynvml.NVMLError):
                load[f"gpu_{index}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000
        return load


def warning(precision: str, gpu: bool) -> str | None:
    """A warning if a run would be very slow on this machine; None otherwise."""
    flags = _cpu_flags()
    if gpu or precision != "bfloat16" or not flags or BFLOAT16_FLAGS & flags:
        return None
    return (
        f"training.precision is bfloat16, but this machine's CPU ({_cpu_model()}) has no instructions for it, "
        "which can make a step ten times slower: use float32 here"
    )


def git_state(folder: Path) -> dict[str, str]:
    """Commit of the repository around `folder`, and whether its files were changed; empty outside of a repository."""
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
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    """Names of CPU features; empty if the system does not list them."""
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _cpu_info(key: str) -> str:
    """The first value of `key` in Linux's /proc/cpuinfo; empty if there is none."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
