"""Delivers what commands could not deliver: of runs, of searches with their trials, or of a whole folder of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.common.errors import UserError
from pipeline.runs import run_folder
from pipeline.tracking import ledger
from pipeline.tracking.mlflow_store.errors import StoreFault
from pipeline.tracking.run_delivery import Busy, RunDelivery


def sync(places: Sequence[Path], report_line: Callable[[str], object]) -> None:
    """Delivers all runs and searches in `places` to their tracking stores; one that is complete is looked for there.

    Args:
        places: folders of runs, of searches, or of several of them.
        report_line: called with a line about each run.

    Raises:
        UserError: a place holds no run, or a store is unreachable or refuses.
    """
    folders = [folder for place in places for folder in _tracked(place)]
    for folder in dict.fromkeys(folders):
        report_line(_deliver(folder))


def _tracked(place: Path) -> list[Path]:
    """The tracked folders at a place, searches before their trials; that of a trial after that of its search."""
    target = ledger.read_target(place)
    around = [place.parent] if target and target.in_search else []
    inside = ledger.tracked(place)
    if not inside:
        raise UserError(f"{place} is not a run, a search or a folder of them: name one that 'train' or 'tune' has made")
    return [*around, *inside]


def _deliver(folder: Path) -> str:
    """Delivers a folder; a line that says what its store has now."""
    delivery = RunDelivery(folder, owned=False)
    try:
        before = delivery.missing()
        delivery.deliver()
        left = delivery.missing()
    except Busy:
        return f"{folder}: {run_folder.owner(folder)} trains it and sends what is missing"
    except StoreFault as fault:
        raise UserError(f"{folder}: {fault.fault.problem}: {fault.fault.remedy}") from None
    target = ledger.read_target(folder)
    store = target.uri if target else ""
    if left.anything:
        return f"{folder}: {store} still lacks {left}"
    return f"{folder}: complete in {store}, {left.of:,} metric rows" + (f" (sent {before})" if before.anything else "")
