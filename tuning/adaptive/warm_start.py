"""Trials of earlier searches, which a searcher that learns knows from the start."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.common.errors import UserError
from data_prep.format.manifest import Manifest
from pipeline.config.schema import Settings
from pipeline.config.settings_io import differences, flatten, may_change
from pipeline.runs.paths import SEARCH
from tuning import search_folder
from tuning.adaptive.observation import Observation
from tuning.config import SearchSettings
from tuning.search_folder import Identity, Record, SearchFolder
from tuning.space.candidate import of_point, trial_settings
from tuning.space.constraints import costs
from tuning.space.points import Point, in_order, is_there, outside

LAW_DEFAULTS = {"growth": 2.0, "max_width": 512}
PLACE = ("run.", "tracking.", "data.path", "start.")
"""Settings of a run that say where it is, and not what it is; weights and images are compared by their hashes."""


def known_trials(settings: SearchSettings, data: Manifest, start_digest: str | None = None) -> list[Observation]:
    """The trials of `search.warm_start` that have ended and that a point of the space makes, too.

    Raises:
        UserError: one of these is no search, measured something else, or has no such trial.
    """
    return [one for name in settings.search.warm_start for one in _of_search(name, settings, data, start_digest)]


def _of_search(name: str, settings: SearchSettings, data: Manifest, start_digest: str | None) -> list[Observation]:
    storage = Path(settings.train.run.storage)
    path = (Path(name) if "/" in name else storage / name).expanduser().absolute()
    if path == search_folder.path_of(settings):
        raise UserError(f"search.warm_start: {name} is this search, which knows its own trials: leave it out")
    if not (path / SEARCH).is_file():
        raise UserError(
            f"search.warm_start: {path} is no folder of a search: name one of {storage}, give a path, or leave it out"
        )
    folder = SearchFolder(path, search_folder.read_identity(path))
    folder.read_records()
    if why := _measures_something_else(folder.identity, settings, data, start_digest):
        raise UserError(f"search.warm_start: {name} {why}: its errors cannot be compared; leave it out")
    found, left_out = [], ""
    recorded = [one for one in folder.records.values() if one.point]
    for record, candidate in zip(recorded, search_folder.candidates_of(folder.records), strict=True):
        if record.status == "pending":
            continue
        run = trial_settings(folder.identity.settings, candidate, path, "")
        point, reason = _point_of(record, run, settings)
        if point is None:
            left_out = left_out or f"{candidate.name}: {reason}"
        else:
            cost = costs(run, data)[settings.search.cost] if settings.search.seeks_frontier else 1.0
            found.append(Observation(point, record.status, record.errors, cost))
    if not found:
        reason = f"of its first one, {left_out}" if left_out else "none has ended"
        raise UserError(
            f"search.warm_start: no trial of {name} can be taken over ({reason}): correct search.space or the settings "
            "under train, or leave it out"
        )
    return found


def _measures_something_else(
    earlier: Identity, settings: SearchSettings, data: Manifest, start_digest: str | None
) -> str | None:
    if earlier.data_digest != data.digest:
        return "has another data set"
    if earlier.settings.search.error != settings.search.error:
        return f"has search.error {earlier.settings.search.error}, not {settings.search.error}"
    if earlier.start_digest != start_digest:
        return "started with other weights"
    return None


def _point_of(record: Record, run: Settings, settings: SearchSettings) -> tuple[Point | None, str]:
    """The point of the space that makes the same run; None, and the reason, if there is none."""
    point: Point = {}
    fields = flatten(run)
    for name in in_order(settings.search.space):
        if is_there(settings.search.space[name], point):
            with suppress(KeyError):
                point[name] = _value_of(name, record, fields)
    if why := outside(settings.search.space, point):
        return None, why
    ours = trial_settings(settings, of_point(point, settings, "search.space"), search_folder.path_of(settings), "")
    changes = [one for one in differences(run, ours, ignored=may_change(Settings)) if not one.startswith(PLACE)]
    return (None, changes[0]) if changes else (point, "")


def _value_of(name: str, record: Record, fields: Mapping[str, Any]) -> Any:
    """The value of a dimension that the trial would have had.

    Raises:
        KeyError: nothing says what it would have been.
    """
    if name in record.coordinates:
        return record.coordinates[name]
    if name == "widths":
        return record.point["widths"]
    if name in LAW_DEFAULTS and "depth" in record.coordinates:
        return LAW_DEFAULTS[name]
    return fields[name]
