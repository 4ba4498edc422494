"""What can be shown of a run, filtered by and sorted by: columns, settings and metrics, each with a key."""

from __future__ import annotations

import difflib
import fnmatch
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from data_prep.common.errors import UserError
from data_prep.common.progress import format_duration
from pipeline.run_list import catalog
from pipeline.run_list.catalog import Listed

CONDITION = re.compile(r"([^=<>!\s]+)\s*(<=|>=|!=|=|<|>)(.*)", re.DOTALL)


@dataclass(frozen=True)
class Column:
    """A column of the list.

    Args:
        title: its heading.
        value: of a run; None if it has none.
        text: of a value, in the table.
    """

    title: str
    value: Callable[[Listed], Any]
    text: Callable[[Any], str] = str


def _of_run(
    measure: Callable[[Listed], Any], join: Callable[[list[Any]], Any] | None = None
) -> Callable[[Listed], Any]:
    """A value of a run; that of a search is joined from its trials', if there is a way."""

    def value(one: Listed) -> Any:
        if one.kind != "search":
            return measure(one)
        values = [found for trial in one.trials if (found := measure(trial)) is not None]
        return join(values) if join and values else None

    return value


def _top1(one: Listed) -> list[float]:
    """Top-1 accuracy after each epoch, as a fraction."""
    name = f"{one.identity.settings.data.evaluate_on}/top1" if one.identity else ""
    return [record.metrics[name] for record in one.history if name in record.metrics]


def _planned(one: Listed) -> int | None:
    return one.identity.settings.training.epochs if one.identity else None


def _seconds(one: Listed) -> float | None:
    return sum(record.metrics.get("train/seconds", 0.0) for record in one.history) or None


def _updated(one: Listed) -> float | None:
    return max((record.finished_at for record in one.history), default=None)


def _count(value: float) -> str:
    """A number with three digits and a prefix, such as 1.23M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            scaled = value / factor
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f}{unit}"
    return f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


COLUMNS: dict[str, Column] = {
    "name": Column("name", lambda one: one.name),
    "kind": Column("kind", lambda one: one.kind),
    "status": Column("status", lambda one: one.status),
    "epochs": Column("epochs", _of_run(lambda one: len(one.history))),
    "epochs_planned": Column("planned", _of_run(_planned)),
    "best_top1": Column("best %", _of_run(lambda one: max(_top1(one), default=None), max), _percent),
    "top1": Column("top-1 %", _of_run(lambda one: next(reversed(_top1(one)), None)), _percent),
    "parameters": Column("parameters", _of_run(lambda one: one.network.get("parameters")), _count),
    "multiply_adds": Column("multiply-adds", _of_run(lambda one: one.network.get("multiply_adds")), _count),
    "images_per_second": Column("images/s", _of_run(lambda one: one.metrics.get("train/images_per_second")), _count),
    "seconds": Column("time", _of_run(_seconds, sum), format_duration),
    "data": Column("data", _of_run(lambda one: one.identity and Path(one.identity.settings.data.path).name, min)),
    "updated": Column(
        "updated", _of_run(_updated, max), lambda value: time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
    ),
    "note": Column("note", lambda one: one.note or None),
}
"""By key. Accuracies are fractions, `seconds` are those of training steps, `updated` is the time of the last epoch in
seconds since 1970."""


def value(one: Listed, key: str) -> Any:
    """The value of a column, a setting, or a metric of the last epoch; None where a run has none."""
    if key in COLUMNS:
        return COLUMNS[key].value(one)
    settings = one.settings
    return settings[key] if key in settings else one.metrics.get(key)


def text(one: Listed, key: str) -> str:
    """A value as the table shows it."""
    found = value(one, key)
    if found is None:
        return ""
    if key == "epochs":
        return f"{found}/{_planned(one)}" if one.identity else str(found)
    if key in COLUMNS:
        return COLUMNS[key].text(found)
    return f"{found:.6g}" if isinstance(found, float) else str(found)


def check(keys: Sequence[str], listed: Sequence[Listed]) -> None:
    """Refuses a key that no run has.

    Raises:
        UserError: names the nearest.
    """
    if not listed or all(key in COLUMNS for key in keys):
        return
    known = dict.fromkeys(COLUMNS)
    for one in catalog.everything(listed):
        known |= dict.fromkeys((*one.settings, *one.metrics))
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"name a setting, a metric, or one of {', '.join(COLUMNS)}"
            raise UserError(f"no run has '{key}': {hint}")


@dataclass(frozen=True)
class Condition:
    """A condition on a run, such as ``top1>0.8``."""

    key: str
    operator: str
    wanted: str

    @classmethod
    def parse(cls, written: str) -> Condition:
        """The condition KEY OP VALUE.

        Raises:
            UserError: it is not of that form.
        """
        parts = CONDITION.fullmatch(written.strip())
        if not parts:
            raise UserError(f"--filter: '{written}' is not of the form KEY=VALUE, with =, !=, <, <=, > or >=")
        return cls(parts[1], parts[2], parts[3].strip())

    def holds(self, one: Listed) -> bool:
        """Whether a run meets the condition; one without such a value only meets ``!=``, or ``=none``.

        Raises:
            UserError: a text is compared by size, or a number with a text.
        """
        found = value(one, self.key)
        if self.operator in ("=", "!="):
            return self._equals(found) == (self.operator == "=")
        if found is None:
            return False
        try:
            number, limit = float(found), float(self.wanted)
        except (TypeError, ValueError):
            raise UserError(
                f"--filter: {self.key}{self.operator}{self.wanted} compares '{found}' with '{self.wanted}': compare "
                "numbers by size, and texts by = and !="
            ) from None
        return {"<": number < limit, "<=": number <= limit, ">": number > limit, ">=": number >= limit}[self.operator]

    def _equals(self, found: Any) -> bool:
        if found is None:
            return self.wanted in ("", "none", "null")
        if isinstance(found, str):
            return fnmatch.fnmatchcase(found, self.wanted)
        try:
            if isinstance(found, int | float) and not isinstance(found, bool):
                return float(found) == float(self.wanted)
            return bool(yaml.safe_load(self.wanted) == found)
        except (ValueError, yaml.YAMLError):
            return False


def select(listed: Sequence[Listed], conditions: Sequence[Condition]) -> list[Listed]:
    """The runs that meet all conditions. A search stays above those of its trials that do.

    Raises:
        UserError: a condition cannot be checked.
    """
    check([condition.key for condition in conditions], listed)

    def among(some: Sequence[Listed]) -> list[Listed]:
        chosen = [replace(one, trials=among(one.trials)) for one in some]
        return [one for one in chosen if one.trials or all(condition.holds(one) for condition in conditions)]

    return among(listed)


def ordered(listed: Sequence[Listed], key: str) -> list[Listed]:
    """Sorted by the value of `key`, descending after a minus; trials stay below their search. Runs without it are last.

    Raises:
        UserError: no run has it.
    """
    name = key.removeprefix("-")
    check([name], listed)

    def in_order(some: Sequence[Listed]) -> list[Listed]:
        values = [(value(one, name), one) for one in some]
        having = [pair for pair in values if pair[0] is not None]
        numbers = all(isinstance(found, int | float) for found, _ in having)
        having.sort(key=lambda pair: pair[0] if numbers else str(pair[0]), reverse=key.startswith("-"))
        return [one for _, one in having] + [one for found, one in values if found is None]

    return [replace(one, trials=in_order(one.trials)) if one.trials else one for one in in_order(listed)]
