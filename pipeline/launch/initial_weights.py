"""The checkpoint that a run starts with, where it is a model in MLflow: fetched once, and kept in the run's folder.

Workers on any machine read it there, and a resumed run does not ask MLflow again, where an alias may have moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from data_prep.common.errors import UserError
from data_prep.common.files import rename_durably
from pipeline.config.references import REFERENCES
from pipeline.config.schema import Settings
from pipeline.runs import paths
from pipeline.tracking.mlflow_store.store import store_of
from pipeline.training.finetune import Start

SOURCE = "source.txt"
"""In the kept checkpoint: the value of `start.checkpoint` that it was fetched from."""


@contextmanager
def fetched(settings: Settings, folder: Path | None) -> Iterator[Settings]:
    """Yields the settings with a local folder as `start.checkpoint`, until the body ends.

    Args:
        settings: of a run, or those that the trials of a search share.
        folder: of the run or the search, which may not exist yet; None if its name depends on the weights.

    Raises:
        UserError: MLflow has no such model.
    """
    source = settings.start.checkpoint
    if source is None or not source.startswith(REFERENCES):
        yield settings
    elif folder and _source_of(folder) == source:
        yield _with_checkpoint(settings, folder / paths.START)
    else:
        from pipeline.tracking.mlflow_store import registry  # imports MLflow, which other runs wait two seconds for

        with ExitStack() as fetched_until_the_end:
            try:
                checkpoint = fetched_until_the_end.enter_context(registry.downloaded(source, store_of(settings)))
            except UserError as error:
                raise UserError(f"start.checkpoint: {error}") from None
            yield _with_checkpoint(settings, checkpoint)


def keep(settings: Settings, local: Settings, folder: Path) -> Settings:
    """Copies what was fetched into the folder of the run or the search, unless it is there.

    Args:
        settings: as the user gave them.
        local: the same from :func:`fetched`.
        folder: of the run or the search.

    Returns:
        `local`, or the settings that name the copy.

    Raises:
        OSError: the folder cannot be written.
    """
    source, checkpoint = settings.start.checkpoint, local.start.checkpoint
    if source is None or checkpoint is None or source == checkpoint:
        return local
    kept = folder / paths.START
    if _source_of(folder) != source:
        partial = kept.with_name(f"partial-{paths.START}")
        for leftover in (partial, kept):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(checkpoint, partial)
        (partial / SOURCE).write_text(source, encoding="utf-8")
        rename_durably(partial, kept)
    return _with_checkpoint(settings, kept)


def describe(start: Start | None, settings: Settings) -> Start | None:
    """`start` under the name that the user gave it, not that of a temporary folder."""
    source = settings.start.checkpoint
    return replace(start, checkpoint=Path(source)) if start and source and source.startswith(REFERENCES) else start


def _source_of(folder: Path) -> str | None:
    """What the kept checkpoint of a run or a search was fetched from; None if there is none."""
    try:
        return (folder / paths.START / SOURCE).read_text(encoding="utf-8")
    except OSError:
        return None


def _with_checkpoint(settings: Settings, checkpoint: Path) -> Settings:
    start = settings.start.model_copy(update={"checkpoint": str(checkpoint)})
    return settings.model_copy(update={"start": start})
