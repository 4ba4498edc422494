"""Settings whose values are names in a registry."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, ValidationInfo
from pydantic_core import core_schema

from data_prep.common.registry import ELSEWHERE, suggestion

STORED = "stored"
"""In pydantic's context: the settings were resolved when they were stored. A network is used, too, where the modules
are missing that its training needed, such as an augmentation; what is missing and needed is named when it is built."""


class NotRegistered(ValueError):
    """A value is no name in a registry; says which are."""


@dataclass(frozen=True)
class Registered:
    """Annotates a setting, ``Annotated[str, Registered("package.module:REGISTRY")]``: its value must be registered.

    The registry is imported when a value is checked: the settings stay below the packages that they configure.
    """

    registry: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the setting can have."""
        return tuple(pkgutil.resolve_name(self.registry))

    def check(self, value: str, info: ValidationInfo) -> str:
        """The value itself. Stored settings (see STORED) may hold names that are not registered here.

        Raises:
            NotRegistered: lists the names.
        """
        if info.context and info.context.get(STORED):
            return value
        names = [repr(name) for name in self.names]
        if not names:
            raise NotRegistered(f"must be {ELSEWHERE}, and none does")
        if repr(value) not in names:
            listed = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            raise NotRegistered(f"must be {listed}{suggestion(value, self.names)}, or {ELSEWHERE}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_after_validator_function(self.check, handler(source))
