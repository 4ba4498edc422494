"""The files in which a search leaves its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.common.files import write_atomically
from pipeline.figures import style
from pipeline.runs import paths
from tuning.results import frontier, pictures, power_law
from tuning.results.frontier import Row
from tuning.search_folder import Record

FILES = (
    paths.SEARCH_TABLE,
    paths.SEARCH_NUMBERS,
    paths.SEARCH_FINDINGS,
    paths.SEARCH_PICTURE,
    paths.SEARCH_CURVES,
    paths.SEARCH_COORDINATES,
)


def findings(rows: Sequence[Row], finals: Sequence[str] = ()) -> list[str]:
    """What the trials show, in sentences: which of them the images tell apart, how the error falls with the cost.

    Args:
        finals: sentences about the finalists, which follow.
    """
    best = frontier.on_frontier(rows)
    points = [(row.multiply_adds, row.error) for row in rows if row.name in best and row.error is not None]
    return [frontier.told_apart(rows), *power_law.describe(points, "multiply-adds"), *finals]


def write(
    rows: Sequence[Row], records: Mapping[str, Record], folder: Path, error_name: str, finals: Sequence[str] = ()
) -> list[Path]:
    """Writes FILES into `folder`, see :func:`findings`; returns their paths."""
    contents: tuple[str | bytes, ...] = (
        frontier.markdown(rows),
        frontier.comma_separated(rows),
        "".join(f"{line}\n" for line in findings(rows, finals)),
        style.png(lambda: pictures.draw_frontier(rows, error_name)),
        style.png(lambda: pictures.draw_curves(rows, records, error_name)),
        style.png(lambda: pictures.draw_coordinates(rows, records)),
    )
    written = [folder / name for name in FILES]
    for file, content in zip(written, contents, strict=True):
        write_atomically(file, content, flush=False)
    return written
