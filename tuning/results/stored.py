"""A search read from its folder, at any time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import UserError
from data_prep.format.manifest import load_manifest
from pipeline.config.schema import Settings
from pipeline.runs.paths import SEARCH
from pipeline.tracking.mlflow_store.store import store_of
from tuning import finals, search_folder
from tuning.config import SearchSettings
from tuning.results.frontier import Row
from tuning.search import rows_of, runs_of
from tuning.search_folder import Record, SearchFolder


@dataclass(frozen=True)
class StoredSearch:
    """A search in its folder."""

    path: Path
    settings: SearchSettings
    runs: dict[str, Settings]
    """By name of the trial."""
    records: dict[str, Record]
    rows: list[Row]
    finals: list[str]
    """Sentences about the finalists."""


def read(path: Path) -> StoredSearch:
    """The search in the folder `path`.

    Raises:
        UserError: there is none, it cannot be read, or its data set is gone.
    """
    file = path / SEARCH
    if not file.is_file():
        raise UserError(f"{path} is no folder of a search: it holds no {SEARCH}")
    folder = SearchFolder(path.absolute(), search_folder.read_identity(path))
    folder.read_records()
    settings = folder.identity.settings
    data = load_manifest(Path(settings.train.data.path))
    candidates = search_folder.candidates_of(folder.records)
    runs = runs_of(settings, candidates, settings.train, store_of(settings.train))
    rows = rows_of(runs, folder.records, data)
    about_finals = finals.describe(folder.finals, data.splits["validation"].samples)
    return StoredSearch(folder.path, settings, runs, folder.records, rows, about_finals)
