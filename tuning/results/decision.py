"""From the trials of a search to the network to train: the best one within a budget, as a file for ``train``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from data_prep.common.errors import UserError, count_of
from data_prep.common.files import write_atomically
from pipeline.config.schema import Settings
from tuning.config import SearchSettings
from tuning.results import intervals
from tuning.results.frontier import Row, shown_error


def best_within(rows: Sequence[Row], limits: dict[str, int | None]) -> Row:
    """The completed trial with the smallest error among those within all limits.

    Args:
        limits: by name of the number, parameters or multiply_adds; None sets no limit.

    Raises:
        UserError: no completed trial is within them.
    """
    completed = [row for row in rows if row.status == "completed" and row.error is not None]
    if not completed:
        raise UserError("the search has no completed trial yet: give the same 'phasecollapse tune' command to go on")
    given = {name: limit for name, limit in limits.items() if limit is not None}
    within = [row for row in completed if all(getattr(row, name) <= limit for name, limit in given.items())]
    if not within:
        said = [f"{name.replace('_', '-')} start at {min(getattr(row, name) for row in completed):,}" for name in given]
        raise UserError(f"no completed trial is within these limits: {' and '.join(said)}")
    return min(within, key=lambda row: (row.error, row.multiply_adds))


def not_told_apart(chosen: Row, rows: Sequence[Row]) -> list[Row]:
    """Completed trials that cost less than the chosen one, and whose errors the images do not tell from its, cheapest
    first."""
    return sorted(
        (
            row
            for row in rows
            if row.status == "completed"
            and row.multiply_adds < chosen.multiply_adds
            and row.error is not None
            and chosen.error is not None
            and chosen.images
            and not intervals.are_apart(row.error, chosen.error, chosen.images)
        ),
        key=lambda row: row.multiply_adds,
    )


def describe(chosen: Row, rows: Sequence[Row], search: SearchSettings) -> list[str]:
    """What is to be said of a choice, line by line."""
    interval = chosen.interval
    assert chosen.error is not None
    measured = f" ({interval.low:.3f} to {interval.high:.3f} with 95 % confidence)" if interval else ""
    lines = [
        f"trial {chosen.name} of search {search.search.name}: {shown_error(search.search.error)} {chosen.error:.4f}"
        f"{measured} on {chosen.images:,} images held out",
        f"{chosen.multiply_adds:,} multiply-adds for one image, {chosen.parameters:,} parameters, "
        f"{count_of(chosen.epochs, 'epoch')}",
    ]
    if cheaper := not_told_apart(chosen, rows):
        lines.append(
            f"these images do not tell its error from that of {count_of(len(cheaper), 'cheaper network')}, "
            f"of which {cheaper[0].name} is the cheapest "
            f"({cheaper[0].error:.4f} at {cheaper[0].multiply_adds:,} multiply-adds)"
        )
    return lines


def run_settings(trial: Settings, search: SearchSettings, name: str, epochs: int | None) -> Settings:
    """The run of a trial as it is trained to be reported: on all training images, evaluated on those of `validation`.

    Args:
        trial: settings of its run in the search.
        name: of the new run.
        epochs: of the new run; None for those of the search.
    """
    shared = search.train
    return trial.model_copy(
        update={
            "data": trial.data.model_copy(update={"holdout": 0.0, "evaluate_on": "validation"}),
            "run": shared.run.model_copy(update={"name": name}),
            "tracking": shared.tracking,
            "training": trial.training.model_copy(update={"epochs": epochs or trial.training.epochs}),
        }
    )


def write_run(file: Path, settings: Settings, said: Sequence[str]) -> None:
    """Writes a settings file for ``phasecollapse train``: what differs from the defaults, with comments.

    Raises:
        UserError: it exists already.
    """
    if file.exists():
        raise UserError(f"{file} exists already: remove it, or choose another name by --output")
    content = settings.model_dump(mode="json", exclude_defaults=True)
    comments = "".join(f"# {line}\n" for line in said)
    write_atomically(file, f"{comments}\n{yaml.safe_dump(content, sort_keys=False)}")
