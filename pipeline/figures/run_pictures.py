"""All pictures of a run, drawn from its folder into it after its last evaluation.

A picture that cannot be drawn is an event of the run, and neither an error nor a reason to leave out the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter

from data_prep.common.errors import UserError, first_line
from data_prep.common.files import write_atomically
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import DataSettings, Settings
from pipeline.figures import confusion_matrix, filters, learning_curves, mistakes, spectra, style
from pipeline.metrics.report import EVERYTHING, EvaluationReport
from pipeline.models.wavelets import Octave, octaves_of_blocks
from pipeline.runs import history, paths, trained_model

_REPORT = TypeAdapter(EvaluationReport)


def draw(run: Path, settings: Settings, on_failure: Callable[[str], None]) -> None:
    """Draws every picture but the samples; one for which there is nothing to show is left out.

    Args:
        run: folder of the run.
        settings: of the run; the data set is read where they say.
        on_failure: called with a sentence about each picture that cannot be drawn.
    """
    folder = run / paths.PICTURES
    draw_one(
        folder / paths.CURVES,
        lambda: style.png(lambda: learning_curves.draw([curves(run, settings)])),
        on_failure,
    )
    draw_evaluation(lambda: read_report(run), Path(settings.data.path), settings.data, folder, on_failure)
    draw_one(folder / paths.FILTERS, lambda: _filters(settings), on_failure)
    draw_one(folder / paths.SPECTRA, lambda: _spectra(run), on_failure)


def draw_evaluation(
    result: Callable[[], EvaluationReport],
    data: Path,
    settings: DataSettings,
    folder: Path,
    on_failure: Callable[[str], None],
) -> None:
    """Draws the confusion matrix and the worst mistakes of an evaluation into `folder`.

    Args:
        result: returns the report on the evaluation.
        data: folder of the data set.
        settings: how the network's input is made of it.
        folder: for the pictures.
        on_failure: called with a sentence about each picture that cannot be drawn.
    """
    size, crop = settings.image_size, settings.center_crop
    draw_one(folder / paths.CONFUSION, lambda: style.png(lambda: confusion_matrix.draw(result())), on_failure)
    draw_one(folder / paths.MISTAKES, lambda: mistakes.draw(result(), data, size, crop), on_failure)


def draw_one(path: Path, make: Callable[[], bytes | None], on_failure: Callable[[str], None]) -> None:
    """Stores the picture that `make` returns; removes an earlier one if it returns None."""
    try:
        path.parent.mkdir(exist_ok=True)
        picture = make()
        if picture is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, picture, flush=False)
    except Exception as error:  # whatever it is: training and its result are worth more
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
        on_failure(f"{path} cannot be drawn: {' '.join(reason.split())}")


def curves(run: Path, settings: Settings, name: str = "") -> learning_curves.Curves:
    """The learning curves of a run."""
    records = history.read(run), history.read_steps(run)
    return learning_curves.Curves(name or run.name, *records, settings.data.evaluate_on)


def read_report(run: Path) -> EvaluationReport:
    """The report on the last evaluation of a run.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = run / paths.REPORT / EVERYTHING
    try:
        return _REPORT.validate_python(json.loads(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)})") from None


def _filters(settings: Settings) -> bytes | None:
    model = settings.model
    if not isinstance(model, ScatteringSettings):
        return None
    octaves = (
        octaves_of_blocks(len(model.widths), model.first_factorized_block)
        if model.octaves is None
        else [Octave(name) for name in model.octaves]
    )
    return style.png(lambda: filters.draw(octaves, model.angles))


def _spectra(run: Path) -> bytes | None:
    values = spectra.singular_values(trained_model.read_weights(trained_model.find(run)))
    return style.png(lambda: spectra.draw(values)) if values else None
