"""Brings one run, or one search, from its folder to its tracking store, and remembers what the store has acknowledged.

What is sent twice, as after a crash, is stored once. The run is marked as finished when the store has everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from pipeline.runs import claimed_folder, paths
from pipeline.tracking import content, ledger
from pipeline.tracking.content import Journals, Point
from pipeline.tracking.ledger import Acknowledged, Target
from pipeline.tracking.mlflow_store.errors import Origin
from pipeline.tracking.mlflow_store.run import DESCRIPTION_TAG, METRICS_IN_A_BATCH, PARENT_TAG, Tracker, open_run
from pipeline.tracking.mlflow_store.store import RECORD, Store

FIRST_USE = 60.0
"""Seconds within which MLflow has made the tables of an SQLite database."""
SLOWEST_UPLOAD = 1e6
"""Bytes a second of an upload that is waited for."""
SETTINGS, MODELS = "settings.yaml", "models"
"""Artifacts: all settings, whole, and the checkpoints as models."""


class Busy(Exception):
    """Another process trains the run, or sends it."""


class Missing(NamedTuple):
    """What a store lacks of a run."""

    rows: int = 0
    """Metric rows, of all `of`."""
    of: int = 0
    artifacts: int = 0
    rest: bool = False
    """Parameters, tags or status."""

    def plus(self, other: Missing) -> Missing:
        """What it lacks of two runs."""
        rest = self.rest or other.rest
        return Missing(self.rows + other.rows, self.of + other.of, self.artifacts + other.artifacts, rest)

    @property
    def anything(self) -> bool:
        """Whether something is missing."""
        return bool(self.rows or self.artifacts or self.rest)

    def __str__(self) -> str:
        parts = [f"{self.rows:,} of {self.of:,} metric rows"] if self.rows else []
        parts += [f"{self.artifacts} artifact{'s' * (self.artifacts > 1)}"] if self.artifacts else []
        return " and ".join(parts) or ("parameters, tags or status" if self.rest else "nothing")


class RunDelivery:
    """Delivers the run or the search in a folder.

    Args:
        folder: of the run.
        owned: whether this process trains it; otherwise a run that no process trains was killed.
        origin: what has named the store, for errors.
        on_progress: called before each request with the seconds that it may take, beyond those of a short one.
    """

    def __init__(
        self,
        folder: Path,
        owned: bool = True,
        origin: Origin = RECORD,
        on_progress: Callable[[float], object] = lambda extra: None,
    ) -> None:
        self.folder = folder
        self._owned, self._origin, self._on_progress = owned, origin, on_progress
        self._journals = Journals(folder)
        self._tracker: Tracker | None = None
        self._settled: Target | None = None

    def deliver(self) -> None:
        """Sends what is missing, and then the status of a run that has ended.

        Raises:
            StoreFault: the store is unreachable, or refuses.
            UserError: the experiment was deleted.
            Busy: another process trains the run, or sends it.
            OSError: the folder cannot be read at this moment.
        """
        target = self._target()
        if target is None or target == self._settled:
            return
        with self._locked():
            tracker, self._tracker = self._tracker, None  # opened again after a fault
            acknowledged = ledger.read_acknowledged(self.folder, target.uri)
            if tracker is None or tracker.store.uri != target.uri:
                storage = self.folder.absolute().parents[1 if target.in_search else 0]
                store = Store(target.uri, self._origin, storage)
                self._on_progress(FIRST_USE if store.database else 0)
                tracker = open_run(target, store, acknowledged.run_id)
            if tracker.run_id != acknowledged.run_id:
                acknowledged = Acknowledged(tracker.run_id)
                ledger.write_acknowledged(self.folder, target.uri, acknowledged)
            attempt = _Attempt(self.folder, target, tracker, acknowledged, self._on_progress)
            complete = attempt.send(self._journals.read())
            self._tracker = tracker
        if complete and target.status != "RUNNING":  # nothing is written any more
            self._settled = target

    def missing(self) -> Missing:
        """What the store lacks, as far as the folder says; makes no request.

        Raises:
            OSError: the folder cannot be read at this moment.
        """
        target = self._target()
        if target is None:
            return Missing()
        acknowledged = ledger.read_acknowledged(self.folder, target.uri)
        rows = of = 0
        for name, points in self._journals.read().items():
            start = acknowledged_count(acknowledged, name, points)
            of += sum(len(point.metrics) for point in points)
            rows += sum(len(point.metrics) for point in points[start:])
        artifacts = len(changed_artifacts(self.folder, target, acknowledged))
        facts, _ = facts_of(self.folder, target)
        rest = not facts or acknowledged.facts != facts or acknowledged.status != ending_of(target)
        return Missing(rows, of, artifacts, rest)

    def run_id(self) -> str | None:
        """Id in the store; None if it is not there yet."""
        target = ledger.read_target(self.folder)
        return ledger.read_acknowledged(self.folder, target.uri).run_id if target else None

    def _target(self) -> Target | None:
        target = ledger.read_target(self.folder)
        if target is None or target.status != "RUNNING" or self._owned:
            return target
        if any(claimed_folder.is_claimed(self.folder, lock) for lock in (paths.LOCK, paths.SEARCH_LOCK)):
            raise Busy
        return target.model_copy(update={"status": "KILLED", "ended_at": _newest(self.folder)})

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.folder / paths.DELIVERY_LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise Busy from None
        try:
            yield
        finally:
            lock.release()


@dataclass
class _Attempt:
    """One attempt to send everything; what is acknowledged is noted after each request."""

    folder: Path
    target: Target
    tracker: Tracker
    acknowledged: Acknowledged
    on_progress: Callable[[float], object]

    def send(self, journals: Mapping[str, Sequence[Point]]) -> bool:
        """Whether the store has everything now; a trial has to wait for the run of its search."""
        if self.target.status == "RUNNING" != self.tracker.status:
            self.on_progress(0)
            self.tracker.set_status("RUNNING")
        for name, points in journals.items():
            self._send_points(name, points)
        facts, tags = facts_of(self.folder, self.target)
        if facts != self.acknowledged.facts:
            self._send_facts(tags)
            self.acknowledged.facts = facts
            self._acknowledge()
        for name, (path, fingerprint) in changed_artifacts(self.folder, self.target, self.acknowledged).items():
            self._send_artifact(name, path)
            self.acknowledged.artifacts[name] = fingerprint
            self._acknowledge()
        ending = ending_of(self.target)
        if facts and (ending != self.acknowledged.status or self.tracker.status != self.target.status):
            self.on_progress(0)
            self.tracker.set_status(self.target.status, self.target.ended_at)
            self.acknowledged.status = ending
            self._acknowledge()
        return bool(facts)

    def _send_points(self, name: str, points: Sequence[Point]) -> None:
        start = acknowledged_count(self.acknowledged, name, points)
        while start < len(points):
            end, rows = start + 1, len(points[start].metrics)
            while end < len(points) and rows + len(points[end].metrics) <= METRICS_IN_A_BATCH:
                rows += len(points[end].metrics)
                end += 1
            self.on_progress(0)
            self.tracker.log_points(points[start:end])
            self.acknowledged.records[name] = (end, points[end - 1].time)
            self._acknowledge()
            start = end

    def _send_facts(self, tags: Mapping[str, str]) -> None:
        self.on_progress(0)
        self.tracker.log_parameters(self.target.parameters)
        self.on_progress(0)
        self.tracker.log_tags(tags)
        if self.target.dataset:
            self.on_progress(0)
            self.tracker.log_dataset(self.target.dataset)

    def _send_artifact(self, name: str, path: Path | None) -> None:
        if name == MODELS:
            self.on_progress(
                sum(file.stat().st_size for file in _files(self.folder / paths.CHECKPOINTS)) / SLOWEST_UPLOAD
            )
            self.tracker.log_models(self.folder)
        elif path is None:
            self.on_progress(0)
            self.tracker.log_text(self.target.settings, name)
        else:
            self.on_progress(sum(file.stat().st_size for file in _files(path)) / SLOWEST_UPLOAD)
            self.tracker.log_file(path, name)

    def _acknowledge(self) -> None:
        ledger.write_acknowledged(self.folder, self.target.uri, self.acknowledged)


def acknowledged_count(acknowledged: Acknowledged, journal: str, points: Sequence[Point]) -> int:
    """How many of the points of a journal the store has; none where the journal has been written again."""
    count, time = acknowledged.records.get(journal, (0, 0.0))
    return count if 0 < count <= len(points) and points[count - 1].time == time else 0


def facts_of(folder: Path, target: Target) -> tuple[str, dict[str, str]]:
    """Fingerprint of what is not a metric or an artifact, and the tags in it. The fingerprint is empty while the store
    does not have the run of the search that this one belongs to."""
    tags = content.tags(folder, target)
    if text := content.description(folder):
        tags[DESCRIPTION_TAG] = text
    if target.in_search:
        parent = ledger.read_acknowledged(folder.parent, target.uri).run_id
        if parent is None:
            return "", tags
        tags[PARENT_TAG] = parent
    dataset = target.dataset and target.dataset.model_dump()
    return _digest(json.dumps([target.parameters, tags, dataset], sort_keys=True)), tags


def changed_artifacts(folder: Path, target: Target, acknowledged: Acknowledged) -> dict[str, tuple[Path | None, str]]:
    """Name → path and fingerprint of the artifacts that the store lacks; settings.yaml and the models have
    no path."""
    found: dict[str, tuple[Path | None, str]] = {SETTINGS: (None, _digest(target.settings))}
    if target.models:
        stored = [
            [path.name, (path / paths.DESCRIPTION).stat().st_mtime_ns] for path in paths.stored_checkpoints(folder)
        ]
        found[MODELS] = (None, _digest(json.dumps(stored)))
    for name, path in content.artifacts(folder, target).items():
        stats = [(str(file.relative_to(path)), file.stat()) for file in _files(path)]
        found[name] = (path, _digest(json.dumps([[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats])))
    return {name: one for name, one in found.items() if acknowledged.artifacts.get(name) != one[1]}


def ending_of(target: Target) -> str:
    """Status and time of the end, as they are acknowledged."""
    return f"{target.status} {target.ended_at or ''}".strip()


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _newest(folder: Path) -> float:
    """When the run in a folder wrote something last, in seconds since 1970."""
    names = (paths.HISTORY, paths.STEPS, paths.PROGRESS, paths.TRACKING)
    return max((folder / name).stat().st_mtime for name in names if (folder / name).exists())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
