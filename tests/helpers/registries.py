"""Registries with an entry of a test's own."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from data_prep.common.registry import Registry


def register(monkeypatch: pytest.MonkeyPatch, module: ModuleType, registry: str, name: str, value: Any) -> None:
    """Registers `value` under `name` for one test, in the registry that `module` has or imports as `registry`."""
    there: Registry[Any] = getattr(module, registry)
    copy: Registry[Any] = Registry("a test's")
    for known, implementation in there.items():
        copy.register(known, implementation)
    copy.register(name, value)
    monkeypatch.setattr(module, registry, copy)
