"""Claims about the description of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.runtime import system_info


@pytest.mark.parametrize(
    ("flags", "precision", "gpu", "warns"),
    [
        ({"avx2"}, "bfloat16", False, True),
        ({"avx2"}, "float32", False, False),
        ({"avx2"}, "bfloat16", True, False),
        ({"avx2", "amx_bf16"}, "bfloat16", False, False),
        (set(), "bfloat16", False, False),  # a system without the list
    ],
)
def test_bfloat16_on_a_cpu_that_lacks_it_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: set[str], precision: str, gpu: bool, warns: bool
) -> None:
    monkeypatch.setattr(system_info, "CPU_INFO", tmp_path / "cpuinfo")
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {' '.join(flags)}\n")
    assert (system_info.warning(precision, gpu) is not None) == warns


def test_this_machine_is_described() -> None:
    described = system_info.describe()
    assert described["hardware.cpu"]
    assert int(described["hardware.cores"]) >= 1
    assert all(isinstance(value, str) for value in described.values())
