"""The finalists of a search: networks of its frontier that are trained again, at full length and with several seeds.

They train on all training images, those held out in the search too, and only they are measured on the validation
images: what decided between them has never seen these. No choice is made between finalists or epochs by this measure.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence

from data_prep.common.errors import count_of
from data_prep.format.manifest import Manifest
from pipeline.config.schema import Settings
from pipeline.launch import launcher
from pipeline.runs import paths
from tuning.config import SearchSettings
from tuning.results import intervals
from tuning.results.decision import run_settings
from tuning.results.frontier import Row, on_frontier
from tuning.search_folder import Record, SearchFolder
from tuning.tracking import ReportLine
from tuning.trials import session
from tuning.trials.recorder import TrialRecorder

TRIAL, SEED, EPOCHS = "trial", "training.seed", "training.epochs"
"""What the point of a finalist's record has."""


def chosen(rows: Sequence[Row], count: int) -> list[Row]:
    """The `count` networks of the frontier with the smallest errors."""
    names = on_frontier(rows)
    best = [row for row in rows if row.name in names]
    return sorted(best, key=lambda row: (row.error or 0.0, row.multiply_adds))[:count]


def runs_of(
    rows: Sequence[Row], runs: Mapping[str, Settings], settings: SearchSettings, folder: SearchFolder
) -> dict[str, Settings]:
    """The finalists that these trials make, by name; `folder` gets their records, the disk does not yet."""
    search, found = settings.search, {}
    for row in chosen(rows, search.finalists):
        for seed in range(settings.train.training.seed, settings.train.training.seed + search.final_seeds):
            epochs = search.final_epochs or settings.train.training.epochs
            name = paths.shorten(f"final_{row.name}_epochs-{epochs}_seed-{seed}")
            found[name] = _run(runs[row.name], settings, folder, name, epochs, seed)
            point = {TRIAL: row.name, SEED: seed, EPOCHS: epochs}
            folder.finals.setdefault(name, Record(point=point))
    return found


def wait(rows: Sequence[Row], runs: Mapping[str, Settings], settings: SearchSettings, folder: SearchFolder) -> bool:
    """Whether a finalist of these trials has not ended."""
    return any(folder.record(name).status == "pending" for name in runs_of(rows, runs, settings, folder))


def _run(
    trial: Settings, settings: SearchSettings, folder: SearchFolder, name: str, epochs: int, seed: int
) -> Settings:
    run = run_settings(trial, settings, name, epochs)
    return run.model_copy(
        update={
            "run": trial.run.model_copy(update={"name": name}),
            "tracking": trial.tracking,
            "training": run.training.model_copy(update={"seed": seed}),
        }
    )


def check(runs: Mapping[str, Settings], settings: SearchSettings, data: Manifest) -> None:
    """Raises what would keep finalists from training, before the search: a UserError."""
    if settings.search.finalists:
        for trial in list(runs.values())[:1]:
            launcher.check(run_settings(trial, settings, "final", settings.search.final_epochs), data)


def train(
    runs: Mapping[str, Settings],
    settings: SearchSettings,
    folder: SearchFolder,
    costs: Mapping[str, float],
    report_line: ReportLine,
    deliver: Callable[[str], None],
) -> None:
    """Trains finalists until each has ended.

    Args:
        costs: of all trials, by name.
        deliver: called with the name of each, before it begins.

    Raises:
        UserError, KeyboardInterrupt: see :func:`tuning.trials.session.run`.
    """
    waiting = {name: run for name, run in runs.items() if folder.record(name).status == "pending"}
    if not waiting:
        return
    networks = count_of(len({folder.record(name).point[TRIAL] for name in runs}), "network")
    report_line(
        f"finalists: {networks} of the frontier, {count_of(settings.search.final_seeds, 'seed')} each, on all training "
        "images, measured on the validation images"
    )
    for name in waiting:
        deliver(name)
    search = settings.search.model_copy(update={"scheduler": "none"})
    epochs = next(iter(runs.values())).training.epochs
    recorder = functools.partial(TrialRecorder, metric=f"validation/{search.error}", epochs=epochs)
    weighed = {name: costs[folder.record(name).point[TRIAL]] for name in waiting}
    unstopped = settings.model_copy(update={"search": search})
    session.run(waiting, unstopped, folder, weighed, report_line, recorder=recorder)


def describe(records: Mapping[str, Record], images: int) -> list[str]:
    """The errors of the finalists in sentences, the smallest mean first.

    Args:
        images: of the validation split.
    """
    groups: dict[tuple[str, int], list[float]] = {}
    for record in records.values():
        if record.status == "completed" and record.error is not None:
            groups.setdefault((record.point[TRIAL], record.point[EPOCHS]), []).append(record.error)
    lines = []
    for (trial, epochs), errors in sorted(groups.items(), key=lambda item: statistics.mean(item[1])):
        mean = statistics.mean(errors)
        by_images = intervals.of_error(mean, images)
        spread = f"{by_images.low:.3f} to {by_images.high:.3f} with other images"
        if len(errors) > 1:
            by_seeds = intervals.of_mean(errors)
            spread = f"{by_seeds.low:.3f} to {by_seeds.high:.3f} with other seeds, {spread}"
        lines.append(
            f"finalist {trial}: error {mean:.4f} on {images:,} validation images after {count_of(epochs, 'epoch')}, "
            f"mean of {count_of(len(errors), 'seed')} ({spread})"
        )
    return lines
