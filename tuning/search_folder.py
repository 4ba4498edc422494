"""The folder of a search, in which one process at a time works.

search.yaml    id, digest of the data set, resolved settings: what the search was started with
search.lock    held while a process searches; the system releases it when that process ends
trials.json    errors and status of every trial, as the scheduler saw them
finals.json    the same of the finalists
<trial>/       the run of each trial (see pipeline/runs/run_folder.py)
tune/          Ray Tune's own files, of the last session
table.md, …    the results (see tuning/results/files.py)
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from data_prep.common.errors import UserError, first_line
from data_prep.common.files import write_atomically
from data_prep.format.manifest import Manifest
from pipeline.config.section import Section
from pipeline.config.settings_io import annotated, differences, may_change
from pipeline.runs import claimed_folder
from pipeline.runs.paths import CHECKPOINTS, FINALS, SEARCH, SEARCH_LOCK, TRIALS
from tuning.config import MAY_ENLARGE, SearchSettings
from tuning.space.candidate import Candidate

EXECUTION_ONLY = may_change(SearchSettings)
"""Settings that may change while a search is interrupted: they decide where and how fast it runs."""
ENLARGING = annotated(SearchSettings, MAY_ENLARGE)
"""Settings that may change between sessions: see MAY_ENLARGE."""


class Record(Section):
    """Status and errors of one trial."""

    status: Literal["pending", "completed", "stopped early", "failed"] = "pending"
    errors: dict[int, float] = Field(default={})
    """After each epoch that the scheduler saw."""
    reason: str = ""
    """Why it failed."""
    point: dict[str, Any] = Field(default={})
    """The trial's widths, and its other settings by their dotted names."""
    coordinates: dict[str, Any] = Field(default={})
    """The point of the search space that it was made of: name of a dimension → value."""
    losses: int = 0
    """How often its process or its node was lost."""

    @property
    def epochs(self) -> int:
        """The last epoch the scheduler saw."""
        return max(self.errors, default=0)

    @property
    def error(self) -> float | None:
        """The error after that epoch."""
        return self.errors[self.epochs] if self.errors else None


_RECORDS = TypeAdapter(dict[str, Record])


class Identity(Section):
    """The content of search.yaml."""

    id: str
    """Unique; the tag of the search's run in MLflow."""
    data_digest: str
    settings: SearchSettings
    start_digest: str | None = None
    """Of the weights that all trials start with; None if they are new."""


@dataclass
class SearchFolder:
    """The folder of a search and its records."""

    path: Path
    identity: Identity
    records: dict[str, Record] = field(default_factory=dict)
    """Of the trials."""
    finals: dict[str, Record] = field(default_factory=dict)
    """Of the finalists (see tuning/finals.py)."""

    def begin(self) -> None:
        """Writes search.yaml; from here on the settings that decide results are fixed."""
        claimed_folder.write_identity(self.path, SEARCH, self.identity)

    def record(self, trial: str) -> Record:
        """The record of a trial or a finalist; an empty one before it has begun."""
        return self.finals.get(trial) or self.records.get(trial, Record())

    def best(self) -> str | None:
        """Name of the trial with the lowest error after its last epoch; None before the first one has ended."""
        errors = {name: record.error for name, record in self.records.items() if record.error is not None}
        return min(errors, key=lambda name: errors[name], default=None)

    def update(self, trial: str, record: Record) -> None:
        """Replaces a record, here and on disk."""
        (self.finals if trial in self.finals else self.records)[trial] = record
        self._write_records()

    def retry_failed(self) -> None:
        """Makes trials and finalists that have failed pending again; written with the next record."""
        for records in (self.records, self.finals):
            for name, record in records.items():
                if record.status == "failed":
                    records[name] = record.model_copy(update={"status": "pending", "reason": "", "losses": 0})

    def expect(self, candidates: Iterable[Candidate]) -> None:
        """Adds records of trials that have none, so that the folder shows how many are to come, and removes those of
        trials that are not to come any more. Trials keep the order in which they came."""
        expected = {one.name: one for one in candidates}
        names = [*(name for name in self.records if name in expected), *expected]
        self.records = {name: record_of(expected[name], self.record(name)) for name in dict.fromkeys(names)}
        self._write_records()

    def add(self, candidate: Candidate) -> None:
        """Adds the record of a trial that is to come."""
        self.update(candidate.name, record_of(candidate, self.record(candidate.name)))

    def _write_records(self) -> None:
        for name, records in ((TRIALS, self.records), (FINALS, self.finals)):
            if records or name == TRIALS:
                content = {trial: one.model_dump() for trial, one in records.items()}
                write_atomically(self.path / name, json.dumps(content, indent=1))

    def read_records(self) -> None:
        """Takes the records from disk."""
        self.records = _read(self.path / TRIALS) or self.records
        self.finals = _read(self.path / FINALS) or self.finals


def _read(file: Path) -> dict[str, Record]:
    """The records in a file; none if it is missing."""
    if not file.exists():
        return {}
    try:
        return _RECORDS.validate_json(file.read_bytes())
    except ValidationError as error:
        raise UserError(f"{file} cannot be read ({first_line(error)}): choose another search.name") from None


def record_of(candidate: Candidate, record: Record) -> Record:
    """`record` with what the candidate of its trial consists of."""
    point = {"widths": list(candidate.widths), **candidate.overrides}
    return record.model_copy(update={"point": point, "coordinates": dict(candidate.coordinates)})


def candidates_of(records: Mapping[str, Record]) -> list[Candidate]:
    """The candidates of all trials that have a record."""
    return [
        Candidate(
            tuple(record.point["widths"]),
            {key: value for key, value in record.point.items() if key != "widths"},
            record.coordinates,
        )
        for record in records.values()
        if record.point
    ]


def with_earlier(
    path: Path,
    records: Mapping[str, Record],
    candidates: Iterable[Candidate],
    may_continue: Callable[[Candidate], bool],
) -> list[Candidate]:
    """`candidates`, after those of earlier sessions that are not among them: those that have ended, and those that have
    begun and may continue.

    Args:
        path: of the search's folder.
    """
    chosen = {one.name: one for one in candidates}
    earlier = candidates_of({name: record for name, record in records.items() if name not in chosen})
    return [
        *(
            one
            for one in earlier
            if records[one.name].status != "pending" or (_has_begun(path, one.name, records) and may_continue(one))
        ),
        *chosen.values(),
    ]


def _has_begun(path: Path, name: str, records: Mapping[str, Record]) -> bool:
    return records[name].epochs > 0 or any((path / name / CHECKPOINTS).glob("*"))


@contextmanager
def claim(settings: SearchSettings, data: Manifest, start_digest: str | None = None) -> Iterator[SearchFolder]:
    """Opens the search of `settings`, or makes a folder for it, for this process alone.

    A search that the body does not begin (see :meth:`SearchFolder.begin`) leaves nothing behind.

    Raises:
        UserError: another process works on it; it was started with other settings or another data set (each difference
            is named); or the folder holds something else.
    """
    path = path_of(settings)

    def busy() -> str:
        return f"search {path} is under way in another process: wait for it, or choose another search.name"

    with claimed_folder.claim(path, SEARCH_LOCK, SEARCH, setting="train.run.storage", busy=busy):
        folder = SearchFolder(path, _identify(path, settings, data, start_digest))
        folder.read_records()
        yield folder


def check(settings: SearchSettings, data: Manifest, start_digest: str | None = None) -> dict[str, Record]:
    """Checks what :func:`claim` would refuse, without writing anything; the lock is not looked at.

    Returns:
        The records of the trials of an interrupted search, by name.

    Raises:
        UserError: as :func:`claim`.
    """
    path = path_of(settings)
    if not path.exists():
        return {}
    folder = SearchFolder(path, _identify(path, settings, data, start_digest))
    folder.read_records()
    return folder.records


def read_identity(path: Path) -> Identity:
    """What the search in the folder `path` was started with.

    Raises:
        UserError: its file cannot be read.
    """
    file = path / SEARCH
    try:
        return claimed_folder.parse_identity(file.read_text(encoding="utf-8"), Identity)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)})") from None


def path_of(settings: SearchSettings) -> Path:
    """The folder of a search, which may not exist."""
    return (Path(settings.train.run.storage) / settings.search.name).absolute()


def _enlarges(setting: str) -> bool:
    return any(setting == one or setting.startswith(f"{one}.") for one in ENLARGING)


def _identify(path: Path, settings: SearchSettings, data: Manifest, start_digest: str | None) -> Identity:
    file = path / SEARCH
    if not file.exists():
        if foreign := claimed_folder.first_foreign_file(path, SEARCH, SEARCH_LOCK):
            raise UserError(f"{path} exists and is not a search (it holds {foreign}): choose another search.name")
        return Identity(id=uuid.uuid4().hex, data_digest=data.digest, settings=settings, start_digest=start_digest)
    try:
        identity = read_identity(path)
    except UserError as error:
        raise UserError(f"{error}: choose another search.name") from None
    changes = differences(identity.settings, settings, ignored=EXECUTION_ONLY)
    changes = [change for change in changes if not _enlarges(change.partition(": ")[0])]
    if identity.data_digest != data.digest:
        changes.append(f"data set: {identity.data_digest[:12]} → {data.digest[:12]}")
    if identity.start_digest != start_digest:
        changes.append("train.start.checkpoint holds other weights")
    if changes:
        raise UserError(
            f"search {path} was started with other settings ({'; '.join(changes)}): "
            "restore them to resume it, or choose another search.name"
        )
    return identity.model_copy(update={"settings": identity.settings.model_copy(update={"search": settings.search})})
