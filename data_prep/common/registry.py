"""Named implementations of one kind (sources, augmentations, non-linearities, …), open to packages outside this one.

A name is registered where its implementation is defined. Code outside this distribution registers its own by an entry
point of the group ``phasecollapse.extensions``, whose module is imported before the first lookup, or by naming its
modules in the environment variable PHASECOLLAPSE_EXTENSIONS, separated by commas. Every process looks names up for
itself, so workers on other nodes need the same packages.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TypeVar

from data_prep.common.distribution import HOME, PACKAGES
from data_prep.common.errors import UserError, is_out_of_memory

GROUP, VARIABLE = "phasecollapse.extensions", "PHASECOLLAPSE_EXTENSIONS"
ELSEWHERE = f"what an installed package or a module in {VARIABLE} registers"
"""Where the names come from that this process does not know."""

Value = TypeVar("Value")


class Registry(Mapping[str, Value]):
    """Implementations by name, in the order of their registration.

    Args:
        setting: field or option that names one, for error messages.
        reserved: names that have another meaning, and cannot be registered.
    """

    def __init__(self, setting: str, reserved: Collection[str] = ()) -> None:
        self._setting, self._reserved = setting, frozenset(reserved)
        self._values: dict[str, Value] = {}

    def register(self, name: str, value: Value) -> Value:
        """Adds an implementation and returns it.

        Raises:
            ValueError: the name is taken or reserved.
        """
        if name in self._reserved:
            raise ValueError(f"{self._setting}: '{name}' has another meaning; choose another name")
        if name in self._values:
            raise ValueError(f"{self._setting}: '{name}' is registered already")
        self._values[name] = value
        return value

    def __getitem__(self, name: str) -> Value:
        """The implementation called `name`.

        Raises:
            KeyError: there is none; :meth:`find` raises an error for users instead.
        """
        load_extensions()
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        load_extensions()
        return iter(self._values)

    def __len__(self) -> int:
        load_extensions()
        return len(self._values)

    def find(self, name: str) -> Value:
        """The implementation called `name`.

        Raises:
            UserError: there is none; lists the names that there are.
        """
        if name not in self:
            known = f"one of: {', '.join(self)}{suggestion(name, self)}; or " if self else ""
            raise UserError(f"{self._setting} is '{name}'; choose {known}{ELSEWHERE}")
        return self[name]


def suggestion(name: str, names: Iterable[str]) -> str:
    """The name that an unknown one resembles, as the end of a phrase that lists `names`; empty if there is none."""
    near = difflib.get_close_matches(name, names, 1)
    return f" (did you mean '{near[0]}'?)" if near else ""


@contextmanager
def explain_faults(what: str) -> Iterator[None]:
    """Names registered code in the errors that it raises.

    Args:
        what: begins the sentence, such as "metric confidence".

    Raises:
        UserError: the body raised an exception; says where. It is raised from that exception. Errors for users, of this
            distribution's own code, and of a memory that is too small stay as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever the code raises
        if is_out_of_memory(error):
            raise
        # Behind this function and its caller; none if the code cannot be called as it is.
        called = traceback.extract_tb(error.__traceback__)[2:3]
        if any(Path(frame.filename).is_relative_to(HOME / name) for frame in called for name in PACKAGES):
            raise
        where = "".join(f" in {frame.filename}, line {frame.lineno}" for frame in called)
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{what} failed{where} ({reason}): correct it") from error


@functools.cache
def load_extensions() -> None:
    """Imports the modules outside this distribution that register implementations, once in a process.

    Raises:
        UserError: one cannot be imported.
    """
    modules = [point.value.partition(":")[0] for point in entry_points(group=GROUP)]
    modules += [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the module raises
            reason = str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
            raise UserError(
                f"extension {module} cannot be imported ({reason}): correct or install it, or remove it from {VARIABLE}"
            ) from None
