"""Two files in the folder of a run, or of a search: what its tracking store is to have beside the metrics, and what
that store has acknowledged."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from data_prep.common.files import write_atomically
from pipeline.config.section import Section
from pipeline.runs import paths

BESIDE = "beside:"
"""Begins the address of an SQLite database in a folder around that of the run, relative to the latter."""
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Dataset(Section):
    """What a run is trained on."""

    name: str
    digest: str
    source: str
    """Path of its folder."""
    contents: dict[str, int]
    """Numbers of its classes, and of the images of each split."""


class Target(Section):
    """What the store is to have of a run or a search, beside its records and files. Written by the process that trains;
    the store, and so this file, is that of its latest session."""

    uri: str
    """Of the store."""
    experiment: str
    identity: str
    """Value of a tag by which the run is found in the store."""
    name: str
    started_at: float
    """Seconds since 1970."""
    parameters: dict[str, str] = Field(default_factory=dict)
    tags: dict[str, str] = Field(default_factory=dict)
    settings: str = ""
    """Content of the artifact settings.yaml."""
    artifacts: dict[str, str] = Field(default_factory=dict)
    """File or folder, relative to the run's → its name among the artifacts."""
    models: bool = False
    """Whether the best and the last checkpoint are artifacts, as models."""
    dataset: Dataset | None = None
    in_search: bool = False
    """Whether the folder around this one is that of a search, whose run in the store is the parent of this one."""
    status: Status = "RUNNING"
    ended_at: float | None = None
    """Seconds since 1970."""


@dataclass
class Acknowledged:
    """What one store has of a run."""

    run_id: str | None = None
    """Of the run in the store; None if there is none yet."""
    records: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Name of a journal → number of its records in the store, and the time of the last one."""
    artifacts: dict[str, str] = field(default_factory=dict)
    """Name of an artifact → fingerprint of its content."""
    facts: str = ""
    """Fingerprint of parameters, tags, data set and description."""
    status: str = ""
    """Status that the store was given last."""


_STORES = TypeAdapter(dict[str, Acknowledged])


def write_target(folder: Path, target: Target) -> None:
    """Writes what the store is to have; it survives a power failure.

    Raises:
        OSError: the disk is full, or fails.
    """
    database, folder = Path(target.uri.removeprefix("sqlite:///")), folder.absolute()
    if target.uri.startswith("sqlite:///") and database.parent in folder.parents:  # it is moved with the folder of runs
        target = target.model_copy(update={"uri": BESIDE + os.path.relpath(database, folder)})
    write_atomically(folder / paths.TRACKING, target.model_dump_json(indent=1))


def tracked(place: Path) -> list[Path]:
    """The folders of tracked runs and searches at a place or in it, searches before their trials.

    Args:
        place: folder of a run, of a search, or of several of them.
    """
    return [file.parent for depth in ("", "*/", "*/*/") for file in sorted(place.glob(f"{depth}{paths.TRACKING}"))]


def read_target(folder: Path) -> Target | None:
    """What the store is to have; None if the folder is not that of a tracked run.

    Raises:
        OSError: the file cannot be read.
    """
    with suppress(FileNotFoundError, NotADirectoryError, ValueError):
        target = Target.model_validate_json((folder / paths.TRACKING).read_bytes())
        if target.uri.startswith(BESIDE):
            database = os.path.normpath(folder.absolute() / target.uri.removeprefix(BESIDE))
            target = target.model_copy(update={"uri": f"sqlite:///{database}"})
        return target
    return None


def end(folder: Path, status: Status, at: float, tags: Mapping[str, str], *, models: bool) -> None:
    """Notes how a run has ended, with more tags, and whether its models are artifacts.

    Args:
        at: seconds since 1970.

    Raises:
        OSError: the disk is full, or fails.
    """
    target = read_target(folder)
    if target is None:
        return
    more = {"tags": {**target.tags, **tags}, "models": models}
    ended = target.model_copy(update={"status": status, "ended_at": at, **more})
    if ended.model_copy(update={"ended_at": target.ended_at}) != target:
        write_target(folder, ended)


def read_acknowledged(folder: Path, uri: str) -> Acknowledged:
    """What a store has of the run; nothing where the file is missing or damaged, as everything may be sent again."""
    return _read(folder).get(uri, Acknowledged())


def write_acknowledged(folder: Path, uri: str, acknowledged: Acknowledged) -> None:
    """Notes what a store has. Not flushed to the disk: what is lost is sent again.

    Raises:
        OSError: the disk is full, or fails.
    """
    stores = {**_read(folder), uri: acknowledged}
    content = {name: asdict(one) for name, one in stores.items()}
    write_atomically(folder / paths.DELIVERED, json.dumps(content, indent=1), flush=False)


def _read(folder: Path) -> dict[str, Acknowledged]:
    try:
        return _STORES.validate_json((folder / paths.DELIVERED).read_bytes())
    except (OSError, ValueError):
        return {}
