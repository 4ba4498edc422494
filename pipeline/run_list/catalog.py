"""The runs in a storage folder, from their folders alone: without MLflow, Ray and torch."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.common.errors import UserError
from data_prep.common.files import explain_os_errors
from pipeline.config.settings_io import flatten
from pipeline.runs import claimed_folder, paths, run_folder, status
from pipeline.runs.history import EpochRecord
from pipeline.runs.run_folder import RunFolder, RunIdentity

UNREADABLE = "unreadable"
"""Status of a run whose identity is damaged."""
TRIAL_STATUS = {"completed": "finished", "stopped early": "stopped early", "failed": "failed"}
"""Status of a trial that has ended, in its search's records → in the list."""


@dataclass(frozen=True)
class Listed:
    """A run, a search, or a trial of a search, as its folder shows it."""

    path: Path
    name: str
    """Within the storage folder; that of a trial is SEARCH/TRIAL."""
    kind: Literal["run", "search", "trial"]
    status: str
    note: str = ""
    """Which process trains it, why it failed, or how many trials have ended."""
    identity: RunIdentity | None = None
    """None for a search, and for a run that has not begun or is damaged."""
    history: Sequence[EpochRecord] = ()
    network: dict[str, int] = field(default_factory=dict)
    """Numbers of parameters and multiply-adds, of runs that have begun to train."""
    trials: Sequence[Listed] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """``{"section.field": value}``; empty without an identity."""
        return flatten(self.identity.settings) if self.identity else {}

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last epoch; empty before the first has ended."""
        return self.history[-1].metrics if self.history else {}


def read(storage: Path) -> list[Listed]:
    """The runs and searches in a storage folder, by name; each search has its trials.

    Raises:
        UserError: it cannot be read.
    """
    if not storage.is_dir():
        raise UserError(f"--storage: there is no folder {storage}: name the folder of the runs (run.storage)")
    with explain_os_errors(storage):
        folders = sorted(entry for entry in storage.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    return [found for folder in folders if (found := _read(folder))]


def everything(listed: Sequence[Listed]) -> Iterator[Listed]:
    """Each run and search, followed by its trials."""
    for one in listed:
        yield one
        yield from one.trials


def find(storage: Path, names: Sequence[str]) -> list[Listed]:
    """The runs of these names, or at these paths, in a storage folder.

    Raises:
        UserError: there is none of a name; the nearest is suggested.
    """
    there = {one.name: one for one in everything(read(storage))}
    wanted = [_name_within(storage, name) for name in names]
    for name in wanted:
        if name not in there:
            near = difflib.get_close_matches(name, there, 1)
            hint = f"did you mean '{near[0]}'?" if near else "'phasecollapse runs' lists them"
            raise UserError(f"{storage} holds no run or search '{name}': {hint}")
    return [there[name] for name in dict.fromkeys(wanted)]


def _name_within(storage: Path, name: str) -> str:
    """The name of a run that a shell has completed to a path."""
    with suppress(ValueError):
        return Path(name).absolute().relative_to(storage.absolute()).as_posix()
    return name.rstrip("/")


def _read(folder: Path) -> Listed | None:
    if (folder / paths.SEARCH).exists():
        return _read_search(folder)
    return _read_run(folder, folder.name)


def _read_run(folder: Path, name: str, kind: Literal["run", "trial"] = "run") -> Listed | None:
    """A run; None if the folder is not that of one."""
    try:
        identity = run_folder.read_identity(folder)
        if identity is None:
            claimed = claimed_folder.is_claimed(folder, paths.LOCK)
            return Listed(folder, name, kind, "waiting", run_folder.owner(folder)) if claimed else None
        run = RunFolder(folder, identity)
        records = run.history()
        state, note = status.read(run, len(records))
        return Listed(folder, name, kind, state, note, identity, records, _network(folder))
    except (UserError, OSError) as error:
        return Listed(folder, name, kind, UNREADABLE, str(error))


def _read_search(folder: Path) -> Listed:
    records = {**_records(folder / paths.TRIALS), **_records(folder / paths.FINALS)}
    running = claimed_folder.is_claimed(folder, paths.SEARCH_LOCK)
    begun = {entry.parent.name for entry in folder.glob(f"*/{paths.IDENTITY}")}
    trials = [_read_trial(folder, name, records.get(name, {}), running) for name in sorted({*records, *begun})]
    ended = sum(trial.status in TRIAL_STATUS.values() for trial in trials)
    state = "running" if running else "finished" if trials and ended == len(trials) else "interrupted"
    return Listed(folder, folder.name, "search", state, f"{ended} of {len(trials)} trials ended", trials=trials)


def _read_trial(search: Path, name: str, record: dict[str, Any], running: bool) -> Listed:
    full = f"{search.name}/{name}"
    trial = _read_run(search / name, full, "trial") or Listed(search / name, full, "trial", "waiting")
    state, note = trial.status, trial.note
    if ended := TRIAL_STATUS.get(str(record.get("status"))):
        state, note = ended, str(record.get("reason", ""))
    elif running and state == "interrupted":
        state = "waiting"  # the search resumes it
    return Listed(trial.path, full, "trial", state, note, trial.identity, trial.history, trial.network)


def _records(file: Path) -> dict[str, dict[str, Any]]:
    """The records of a search's trials, by name; empty if they are missing or damaged."""
    try:
        content = json.loads(file.read_bytes())
        return {name: record for name, record in content.items() if isinstance(record, dict)}
    except (OSError, ValueError, AttributeError):
        return {}


def _network(run: Path) -> dict[str, int]:
    try:
        content = json.loads((run / paths.NETWORK).read_bytes())
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}
