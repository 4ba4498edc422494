"""What a search will do: its trials, their work, and the time that it will take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_prep.common.errors import count_of
from data_prep.common.parallel import cores
from data_prep.common.progress import format_duration
from data_prep.format.manifest import load_manifest
from pipeline.config.schema import Settings
from pipeline.launch import initial_weights, launcher, run_plan
from pipeline.tracking.mlflow_store.store import store_of
from pipeline.training import finetune
from pipeline.training.dataloader import count_images
from pipeline.training.setup import memory_errors
from tuning import finals, search_folder, searchers
from tuning.config import SearchSettings
from tuning.results import frontier
from tuning.results.frontier import Row
from tuning.schedulers import build_scheduler
from tuning.search import costs_of, rows_of, runs_of
from tuning.search_folder import Record
from tuning.searchers import Choice
from tuning.space.candidate import Candidate
from tuning.trials import session

FORESEEN = 10
"""Trials of a searcher that learns that a plan shows."""


@dataclass(frozen=True)
class SearchPlan:
    """What a search will do."""

    networks: list[Row]
    """One for each trial that has not ended."""
    ended: int
    """Trials that have ended already."""
    epochs: int
    images_per_epoch: int
    """Images that a trial trains on in an epoch."""
    points: str
    """How many points of the space are tried, and why others are not."""
    workers: int
    """Of each trial."""
    at_once: int
    """Trials that train at the same time."""
    largest: Settings | None
    """The run of the trial with the most multiply-adds; None if every trial has ended."""
    unseen: int = 0
    """Trials besides `networks`, which depend on the results of these."""

    @property
    def multiply_adds(self) -> float:
        """Of the forward pass of one image through all networks; those unseen are taken to be like the others."""
        seen = len(self.networks)
        return sum(row.multiply_adds for row in self.networks) * (seen + self.unseen) / max(1, seen)

    def __str__(self) -> str:
        work = 3 * self.epochs * self.images_per_epoch * self.multiply_adds
        return "\n".join(
            [
                *frontier.markdown(self.networks).splitlines(),
                f"space        {self.points}",
                f"trials       {len(self.networks) + self.unseen} to train, {self.at_once} at a time, {self.ended} "
                f"have ended; {count_of(self.workers, 'worker')} each",
                f"epochs       at most {self.epochs} of {self.images_per_epoch:,} images each; search.scheduler stops "
                "some earlier",
                f"work         at most {work:.2e} multiply-adds, forward and backward"
                + (", if all networks are like those shown" if self.unseen else ""),
            ]
        )


def dry_run(settings: SearchSettings) -> SearchPlan:
    """The plan of a search, after every check that needs no worker; writes nothing.

    The size of the cluster is checked only if it is running already (`cluster.address`).

    Raises:
        UserError: names the setting that does not fit.
    """
    data = load_manifest(Path(settings.train.data.path))
    with initial_weights.fetched(settings.train, search_folder.path_of(settings)) as train:
        digest = finetune.digest(train)
        records = search_folder.check(settings, data, digest)
        choice = searchers.choose(settings, data, digest)
        allowed = searchers.may_continue(settings, data)
        path = search_folder.path_of(settings)
        candidates = search_folder.with_earlier(path, records, choice.candidates, allowed)
        store = store_of(settings.train)
        runs = runs_of(settings, candidates, train, store)
        weighed = costs_of(rows_of(runs, records, data), settings)
        foreseen, unseen = _foreseen(choice, candidates, records, weighed)
        runs |= runs_of(settings, foreseen, train, store)
        for run in runs.values():
            launcher.check(run, data)
        finals.check(runs, settings, data)
    rows = rows_of(runs, records, data)
    build_scheduler(settings, records, costs_of(rows, settings))
    waiting = {name: run for name, run in runs.items() if records.get(name, Record()).status == "pending"}
    images, _ = count_images(next(iter(runs.values())).data, data, settings.train.training.seed)
    networks = [row for row in rows if row.name in waiting]
    return SearchPlan(
        networks,
        ended=len(runs) - len(waiting),
        epochs=settings.train.training.epochs,
        images_per_epoch=images,
        points=str(choice) if choice.asker is None else _ahead(settings, len(foreseen), unseen),
        unseen=unseen,
        workers=settings.train.cluster.workers,
        at_once=_trials_at_once(settings) if waiting else 0,
        largest=waiting[max(networks, key=lambda row: row.multiply_adds).name] if networks else None,
    )


def _foreseen(
    choice: Choice, candidates: Sequence[Candidate], records: Mapping[str, Record], costs: Mapping[str, float]
) -> tuple[list[Candidate], int]:
    """The first candidates that a searcher that learns proposes before it has further results, and the number of those
    after them."""
    found: list[Candidate] = []
    if choice.asker is None:
        return found, 0
    known = {one.name: search_folder.record_of(one, records.get(one.name, Record())) for one in candidates}
    while len(found) < FORESEEN and (one := choice.asker.ask(known, costs)) is not None:
        known[one.name] = search_folder.record_of(one, Record())
        found.append(one)
    return found, (choice.asker.left(known) or 0) if len(found) == FORESEEN else 0


def _ahead(settings: SearchSettings, shown: int, unseen: int) -> str:
    searcher = settings.search.searcher
    if not unseen:
        return f"{count_of(shown, 'point')} that {searcher} proposes before it has further results"
    return (
        f"{count_of(shown + unseen, 'point')} that {searcher} proposes one by one: {shown} are shown, as they would be "
        "without further results"
    )


def _trials_at_once(settings: SearchSettings) -> int:
    """Trials that fit on the cluster that is running already, or on this machine."""
    cluster = settings.train.cluster
    if cluster.address or os.environ.get("RAY_ADDRESS"):
        with launcher.cluster_with_room(cluster):
            fitting = session.trials_that_fit(settings)
    else:
        fitting = session.trials_that_fit(settings, {"CPU": cores(), "GPU": torch.cuda.device_count()})
    return min(fitting, settings.search.max_concurrent or fitting)


def describe_time(plan: SearchPlan) -> str:
    """The last line of a plan: how long the trials take, estimated from a few steps of the largest network here.

    Raises:
        UserError: memory is too small for it.
    """
    run = plan.largest
    if run is None:
        return "time         none, as every trial has ended"
    if run.cluster.gpu and not torch.cuda.is_available():
        return "time         not measured: train.cluster.gpu is true, and torch sees no GPU on this machine"
    with memory_errors(run):
        speed = run_plan.measure_speed(run, run_plan.plan(run, load_manifest(Path(run.data.path))))
    costs = [row.multiply_adds for row in plan.networks]
    longest, everything = (
        format_duration(max(1.0, speed.seconds * cost / max(costs)))
        for cost in (max(costs), max(max(costs), plan.multiply_adds / max(1, plan.at_once)))
    )
    return (
        f"time         at most {longest} for {run.run.name}, the largest, and {everything} for all trials (a few steps "
        f"were measured on this machine, {speed.images_per_step} images each)"
    )
