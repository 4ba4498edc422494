"""Notes in a run's folder what its tracking store is to have, as the run begins and as it ends."""

from __future__ import annotations

import getpass
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.common import storage
from data_prep.common.files import explain_os_errors
from data_prep.format.manifest import Manifest
from pipeline.config.schema import Settings
from pipeline.config.settings_io import flatten, to_yaml
from pipeline.runs.run_folder import RunFolder
from pipeline.runtime import system_info
from pipeline.tracking import ledger
from pipeline.tracking.ledger import Dataset, Status, Target
from pipeline.tracking.mlflow_store.store import store_of


def begin(folder: RunFolder, settings: Settings, data: Manifest, tags: Mapping[str, str], in_search: bool) -> bool:
    """Notes what the store is to have of a run that begins, resumes, or has finished.

    Args:
        settings: of this session, which decide where the run is tracked.
        data: manifest of the data set.
        tags: further tags.
        in_search: whether the run is a trial in the folder of a search.

    Returns:
        Whether the run had finished, and its end was noted: nothing is left but to deliver it.

    Raises:
        UserError: the folder cannot be written.
    """
    original, records = folder.identity.settings, folder.history()  # MLflow keeps the parameters of the start
    digests = {"data.digest": folder.identity.data_digest}
    if folder.identity.start_digest:
        digests["start.digest"] = folder.identity.start_digest
    extended = {"training.epochs": str(original.training.epochs)} if folder.extended_from else {}
    with explain_os_errors(folder.path):
        before = ledger.read_target(folder.path)
        ended = before if before and before.status == "FINISHED" and folder.finished() else None
        now = time.time()
        target = Target(
            uri=store_of(settings).uri,
            experiment=settings.tracking.experiment,
            identity=folder.identity.id,
            name=folder.path.name,
            started_at=before.started_at if before else min([now, *(record.finished_at for record in records)]),
            parameters={key: str(value) for key, value in {**flatten(original), **digests}.items()},
            tags=ended.tags if ended else {**provenance(folder.path.parent if in_search else None), **extended, **tags},
            settings=to_yaml(original),
            models=ended.models if ended else False,
            dataset=Dataset(
                name=data.name,
                digest=data.digest,
                source=settings.data.path,
                contents={
                    "classes": len(data.classes),
                    **{name: split.samples for name, split in data.splits.items()},
                },
            ),
            in_search=in_search,
            status=ended.status if ended else "RUNNING",
            ended_at=ended.ended_at if ended else None,
        )
        if target != before:
            ledger.write_target(folder.path, target)
    return ended is not None


def provenance(search: Path | None = None) -> dict[str, str]:
    """Tags of the command that trains: who gave it, in which state of the source code.

    Args:
        search: folder of the search that a trial belongs to: its command is that of the search, which has noted it.
    """
    program, *arguments = sys.argv or [""]
    command = shlex.join([Path(program).name, *(storage.redact(argument) for argument in arguments)])
    tags = {"command": command, "mlflow.source.name": "phasecollapse", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a user without a name
        tags["mlflow.user"] = getpass.getuser()
    tags |= system_info.git_state(Path.cwd())
    noted = ledger.read_target(search) if search else None
    return {**tags, **{name: value for name, value in noted.tags.items() if name in tags}} if noted else tags


@contextmanager
def status(folder: RunFolder) -> Iterator[None]:
    """Notes how the run has ended when the body ends; one that has finished gets its models.

    A trial that a scheduler stops ends by SystemExit, and has done what it was to do.
    """
    how: Status = "FAILED"
    complete = False
    try:
        yield
        how, complete = "FINISHED", True
    except SystemExit:
        how = "FINISHED"
        raise
    except KeyboardInterrupt:
        how = "KILLED"
        raise
    finally:
        with suppress(OSError):  # the same command notes it again
            ledger.end(folder.path, how, time.time(), {}, models=complete)
