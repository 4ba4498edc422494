"""The folder of a run: its identity, and the lock that lets one process at a time train it.

run.yaml         identity: id, digests of the data set and of the initial weights, resolved settings
run.lock         held while a process trains the run; released by the operating system however that process ends
checkpoints/     the latest checkpoints, and the best
history.json     metrics of every epoch, as in the latest checkpoint
steps.jsonl      metrics of intervals of steps
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.errors import UserError, first_line
from data_prep.common.files import explain_os_errors
from pipeline.config.model_schema import ModelSettings, ResNetSettings
from pipeline.config.schema import Settings
from pipeline.config.section import Section
from pipeline.config.settings_io import differences, flatten, may_change
from pipeline.runs import claimed_folder, history, paths
from pipeline.runs.paths import IDENTITY, LOCK, OWNER

if TYPE_CHECKING:
    from data_prep.format.manifest import Manifest

EXECUTION_ONLY = may_change(Settings)
"""Settings that may change when a run is resumed. The digests of the data set and of the initial weights decide its
identity instead of their paths."""


class RunIdentity(Section):
    """The content of run.yaml."""

    id: str
    """Unique; a tag of the run in MLflow."""
    data_digest: str
    settings: Settings
    start_digest: str | None = None
    """Digest of the weights of start.checkpoint; None without it."""


@dataclass(frozen=True)
class RunFolder:
    """The folder and the identity of a run."""

    path: Path
    identity: RunIdentity
    extended_from: int | None = None
    """Epochs after which the run had finished, if it is given more now."""

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / paths.CHECKPOINTS

    def begin(self) -> list[str]:
        """Writes the identity of the run, which fixes its settings, and what else is missing or damaged of what the
        checkpoints have a copy of.

        Returns:
            A sentence about each file that was written from a checkpoint.

        Raises:
            UserError: the folder cannot be written.
        """
        restored = []
        if (problem := _problem_of(self.path / IDENTITY)) and (source := _source_of_identity(self.path)):
            restored.append(f"{IDENTITY} {problem}: restored from checkpoint {source.name}")
        claimed_folder.write_identity(self.path, IDENTITY, self.identity)
        with explain_os_errors(self.path):
            if sentence := history.restore(self.path):
                restored.append(sentence)
        return restored

    def latest_checkpoint(self) -> Path | None:
        """The latest complete checkpoint; None if there is none."""
        return next(reversed(paths.stored_checkpoints(self.path)), None)

    def history(self) -> list[history.EpochRecord]:
        """Records of the finished epochs."""
        return history.read(self.path)

    def finished(self) -> bool:
        """Whether all epochs are finished."""
        return len(self.history()) >= self.identity.settings.training.epochs


def default_name(settings: Settings, data: Manifest, start_digest: str | None = None) -> str:
    """Data set, network and a digest of all that decides the result: ``imagenette-collapse-32-64x2-1f00ba12``."""
    what_decides = {field: value for field, value in flatten(settings).items() if field not in EXECUTION_ONLY}
    decisive = json.dumps([what_decides, data.digest, start_digest], sort_keys=True)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", data.name).strip("-._") or "data"
    return paths.shorten(f"{name}-{_network_name(settings.model)}-{hashlib.sha256(decisive.encode()).hexdigest()[:8]}")


@contextmanager
def claim(settings: Settings, data: Manifest, start_digest: str | None = None) -> Iterator[RunFolder]:
    """Opens the run of `settings`, or creates its folder, and locks it for this process.

    A new folder is removed if the body does not begin the run (see :meth:`RunFolder.begin`).

    Args:
        settings: of the run.
        data: manifest of the data set.
        start_digest: of the weights of `start.checkpoint`; None without it.

    Raises:
        UserError: another process trains the run; it was started with other settings or another data set (names each
            difference), more epochs of a finished run aside; or the folder holds something else.
    """
    path = _path(settings, data, start_digest)

    def busy() -> str:
        return f"run {path} is being trained by {owner(path)}: wait for it, or choose another run.name"

    with claimed_folder.claim(path, LOCK, IDENTITY, (OWNER,), setting="run.storage", busy=busy):
        with explain_os_errors(path):
            (path / OWNER).write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        if settings.checkpoint.upload:
            from pipeline.runs import remote_copy  # imports pyarrow, which a list of runs does not need

            remote_copy.fetch_identity(remote_copy.location_of(settings.checkpoint.upload, path), path)
        yield _identify(path, settings, data, start_digest)


def check(settings: Settings, data: Manifest, start_digest: str | None = None) -> None:
    """Checks what :func:`claim` would refuse, without writing anything; the lock is not looked at.

    Raises:
        UserError: as :func:`claim`.
    """
    path = _path(settings, data, start_digest)
    if path.exists():
        _identify(path, settings, data, start_digest)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"run.storage: {path} cannot be written, as {there} is no folder that you may write in")


def _path(settings: Settings, data: Manifest, start_digest: str | None) -> Path:
    return Path(settings.run.storage) / (settings.run.name or default_name(settings, data, start_digest))


def read_identity(path: Path) -> RunIdentity | None:
    """The identity of the run in the folder `path`, or that in its newest checkpoint if run.yaml is missing or damaged;
    None if no run has begun there.

    Raises:
        UserError: run.yaml is damaged, and no checkpoint has a copy.
    """
    file = path / IDENTITY
    damage: Exception | None = None
    for candidate in (file, *(stored / paths.IDENTITY_COPY for stored in reversed(paths.stored_checkpoints(path)))):
        try:
            return claimed_folder.parse_identity(candidate.read_text(encoding="utf-8"), RunIdentity)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            damage = damage or error
    if damage:
        raise UserError(
            f"{file} cannot be read ({first_line(damage)}), and no checkpoint holds a copy: choose another "
            "run.name, and set start.checkpoint to begin with the weights of this run"
        )
    return None


def _problem_of(file: Path) -> str | None:
    """What is wrong with a run.yaml, in a few words; None if it is whole."""
    try:
        claimed_folder.parse_identity(file.read_text(encoding="utf-8"), RunIdentity)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError):
        return "is damaged"
    return None


def _source_of_identity(path: Path) -> Path | None:
    """The checkpoint from which :func:`read_identity` takes the identity of a run whose run.yaml is lost."""
    stored = reversed(paths.stored_checkpoints(path))
    return next((one for one in stored if _problem_of(one / paths.IDENTITY_COPY) is None), None)


def _identify(path: Path, settings: Settings, data: Manifest, start_digest: str | None) -> RunFolder:
    identity = read_identity(path)
    if identity is None:
        if foreign := claimed_folder.first_foreign_file(path, IDENTITY, LOCK, OWNER):
            raise UserError(f"{path} exists and is not a run (it holds {foreign}): choose another run.name")
        new = RunIdentity(id=uuid.uuid4().hex, data_digest=data.digest, settings=settings, start_digest=start_digest)
        return RunFolder(path, new)
    epochs, wanted = identity.settings.training.epochs, settings.training.epochs
    extended = wanted > epochs and RunFolder(path, identity).finished()
    changes = differences(identity.settings, settings, {*EXECUTION_ONLY, *(["training.epochs"] if extended else [])})
    if identity.data_digest != data.digest:
        changes.append(f"data set: {identity.data_digest[:12]} → {data.digest[:12]}")
    if identity.start_digest != start_digest:
        changes.append(f"weights of start.checkpoint: {_weights(identity.start_digest)} → {_weights(start_digest)}")
    if changes:
        raise UserError(
            f"run {path} was started with other settings ({'; '.join(changes)}): "
            "restore them to resume it, or choose another run.name"
        )
    if not extended:
        return RunFolder(path, identity)
    training = identity.settings.training.model_copy(update={"epochs": wanted})
    longer = identity.settings.model_copy(update={"training": training})
    return RunFolder(path, identity.model_copy(update={"settings": longer}), extended_from=epochs)


def _network_name(model: ModelSettings) -> str:
    if isinstance(model, ResNetSettings):
        return f"resnet{model.depth}-{model.nonlinearity}"
    runs = [(width, len(list(group))) for width, group in itertools.groupby(model.channels)]
    widths = "-".join(f"{width}x{times}" if times > 1 else str(width) for width, times in runs)
    return f"{model.nonlinearity}{'-skip' if model.skip else ''}-{widths}"


def _weights(start_digest: str | None) -> str:
    return start_digest[:12] if start_digest else "new"


def owner(path: Path) -> str:
    """Which process trains the run in the folder `path`, or did so last, such as process 123 on node-1."""
    try:
        return (path / OWNER).read_text(encoding="utf-8")
    except OSError:
        return "another process"
