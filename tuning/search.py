"""A search: settings → trials on a Ray cluster, bad ones stopped early → table, frontier, picture.

The scheduler of Ray Tune decides which trials continue. Each trial is a run in a folder of its own, and a child of the
search's run in MLflow. The same command resumes an interrupted search and repeats no trial that has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_prep.format.manifest import Manifest, load_manifest
from pipeline.config.schema import Settings
from pipeline.launch import initial_weights, launcher
from pipeline.runs import history
from pipeline.tracking.mlflow_store import addresses
from pipeline.tracking.mlflow_store.store import Store, store_of
from pipeline.tracking.mlflow_store.store import check as check_store
from pipeline.training import finetune
from pipeline.training.dataloader import count_images
from tuning import finals, search_folder, searchers, tracking
from tuning.config import SearchSettings
from tuning.results import files
from tuning.results.frontier import Row
from tuning.search_folder import Record, SearchFolder
from tuning.searchers import Choice
from tuning.space.candidate import Candidate, trial_settings
from tuning.space.constraints import costs
from tuning.tracking import ReportLine
from tuning.trials import session


@dataclass(frozen=True)
class Report:
    """The result of a search."""

    folder: Path
    rows: list[Row]
    finals: list[str]
    """Sentences about the finalists."""
    already_finished: bool
    """Every trial and finalist had ended before."""


def search(settings: SearchSettings, report_line: ReportLine = print, *, retry_failed: bool = False) -> Report:
    """Trains every candidate of `settings` that has not ended yet.

    Args:
        report_line: called with one line for each event.
        retry_failed: trials that have failed are trained, too, from their latest checkpoints.

    Raises:
        UserError: a setting is wrong, the folder cannot be used, or the cluster is too small.
        KeyboardInterrupt: the user stopped the search; its resources are free, and the same call resumes it.
    """
    settings = settings.model_copy(update={"train": addresses.choose(settings.train)})
    data = load_manifest(Path(settings.train.data.path))
    store = store_of(settings.train)
    with (
        initial_weights.fetched(settings.train, search_folder.path_of(settings)) as train,
        ExitStack() as cluster_left_last,
    ):
        digest = finetune.digest(train)
        folder = cluster_left_last.enter_context(search_folder.claim(settings, data, digest))
        choice = searchers.choose(settings, data, digest)
        allowed = searchers.may_continue(settings, data)
        candidates = search_folder.with_earlier(folder.path, folder.records, choice.candidates, allowed)
        if retry_failed:
            folder.retry_failed()
        runs = runs_of(settings, candidates, train, store)
        for run in runs.values():
            launcher.check(run, data)
        finals.check(runs, settings, data)
        waiting = any(folder.record(name).status == "pending" for name in runs) or expects_more(choice, folder, runs)
        finals_wait = bool(settings.search.finalists) and (
            waiting or finals.wait(rows_of(runs, folder.records, data), runs, settings, folder)
        )
        if waiting or finals_wait:
            cluster_left_last.enter_context(session.cluster(settings.train.cluster, report_line))
        check_store(store)
        folder.begin()  # a search that was refused leaves no folder
        train = initial_weights.keep(settings.train, train, folder.path)
        runs = runs_of(settings, candidates, train, store)
        folder.expect(candidates)
        tracking.begin(settings, folder, store, has_work=waiting or finals_wait)
        with tracking.delivered(folder, [*runs, *folder.finals], store.origin, report_line) as deliver:
            if waiting:
                weighed = costs_of(rows_of(runs, folder.records, data), settings)

                def add(candidate: Candidate) -> None:
                    folder.add(candidate)
                    new = runs_of(settings, [candidate], train, store)
                    runs.update(new)
                    weighed.update(costs_of(rows_of(new, folder.records, data), settings))
                    deliver(candidate.name)

                further = further_trials(choice, folder, weighed, add, report_line)
                session.run(runs, settings, folder, weighed, report_line, further)
            rows = rows_of(runs, folder.records, data)
            if finals_wait:
                found = finals.runs_of(rows, runs, settings, folder)
                finals.train(found, settings, folder, costs_of(rows, settings), report_line, deliver)
            about_finals = finals.describe(folder.finals, data.splits["validation"].samples)
            if waiting or finals_wait or not all((folder.path / name).exists() for name in files.FILES):
                files.write(rows, folder.records, folder.path, settings.search.error, about_finals)
        return Report(folder.path, rows, about_finals, already_finished=not (waiting or finals_wait))


def expects_more(choice: Choice, folder: SearchFolder, runs: Mapping[str, Settings]) -> bool:
    """Whether a searcher that learns finds a further trial for a search of these runs."""
    records = {name: folder.record(name) for name in runs}
    return choice.asker is not None and choice.asker.ask(records, {}) is not None


def further_trials(
    choice: Choice,
    folder: SearchFolder,
    costs: Mapping[str, float],
    add: Callable[[Candidate], None],
    report_line: ReportLine,
) -> session.Further | None:
    """The trials that a searcher that learns adds to a search, one by one; None if the searcher is another one.

    Args:
        costs: of all trials so far, by name.
        add: takes in a further one.
    """
    asker = choice.asker
    if asker is None:
        return None

    def find() -> str | None:
        candidate = asker.ask(folder.records, costs)
        if candidate is not None:
            add(candidate)
            return candidate.name
        if asker.left(folder.records):
            why = "".join(f"; {count} left out: {reason}" for reason, count in Counter(asker.refused.values()).items())
            report_line(f"search.searcher: no further point was found that was not tried before{why}")
        return None

    return session.Further(find, asker.left(folder.records), last=asker.besides)


def runs_of(
    settings: SearchSettings, candidates: Sequence[Candidate], train: Settings, store: Store
) -> dict[str, Settings]:
    """The run of each trial, by its name, with the initial weights of `train`."""
    local, folder = settings.model_copy(update={"train": train}), search_folder.path_of(settings)
    return {one.name: trial_settings(local, one, folder, store.uri) for one in candidates}


def costs_of(rows: Sequence[Row], settings: SearchSettings) -> dict[str, float]:
    """The cost of each trial, by its name, see `search.cost`."""
    return {row.name: getattr(row, settings.search.cost) for row in rows}


def rows_of(runs: Mapping[str, Settings], records: Mapping[str, Record], data: Manifest) -> list[Row]:
    """One row for each trial, started or not."""
    rows = []
    images: dict[int, int] = {}  # by seed: trials hold out the same images otherwise
    for name, run in runs.items():
        seed = run.training.seed
        if seed not in images:
            images[seed] = count_images(run.data, data, seed)[1]
        record = records.get(name, Record())
        rows.append(
            Row(
                name,
                run.model.channels,  # type: ignore[union-attr]
                **costs(run, data),
                error=record.error,
                epochs=record.epochs,
                status=record.status,
                reason=record.reason,
                images=images[seed],
                seconds=_seconds_per_epoch(run, name) if record.epochs else None,
            )
        )
    return rows


def _seconds_per_epoch(run: Settings, name: str) -> float | None:
    """Of training steps, a mean over the epochs of a trial; None where its history is gone."""
    try:
        epochs = history.read(Path(run.run.storage) / name)
    except (OSError, ValueError):
        return None
    seconds = [one.metrics["train/seconds"] for one in epochs if "train/seconds" in one.metrics]
    return sum(seconds) / len(seconds) if seconds else None
