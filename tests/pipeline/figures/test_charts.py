"""Claims about charts: nothing is cut, whatever the names and numbers are, and no value is invented."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from data_prep.format.manifest import ImageClass
from pipeline.figures import confusion_matrix, filters, learning_curves, spectra, style
from pipeline.figures.learning_curves import Curves
from pipeline.metrics.mistakes import WorstMistakes
from pipeline.metrics.report import ClassResult, EvaluationReport
from pipeline.models.wavelets import filter_bank, octaves_of_blocks
from pipeline.runs.history import EpochRecord, StepRecord

LONG = "Chesapeake Bay retriever $x_1^2$ <b> " + "of a very long name " * 6


def run(name: str = "run", epochs: int = 3, diverges_after: int = 99) -> Curves:
    def metrics(epoch: int) -> dict[str, float]:
        loss = math.nan if epoch > diverges_after else 2 / epoch
        names = ("train/loss", "validation/loss", "train/top1", "validation/top1")
        return {**dict.fromkeys(names, loss), "learning_rate": 0.1 / epoch, "train/images_per_second": 100.0}

    steps = [StepRecord(step, 0, {"step/loss": 2.5, "step/learning_rate": 0.1}) for step in range(5, 10 * epochs, 5)]
    return Curves(name, [EpochRecord(epoch, 0, metrics(epoch), 10 * epoch) for epoch in range(1, epochs + 1)], steps)


def report(classes: int, name: str, without: int = 0) -> EvaluationReport:
    counts = np.eye(classes, dtype=int) * 3
    counts[:, 0] += 1
    counts[classes - without :] = 0
    results = [ClassResult(str(i), f"{name} {i}", int(row.sum()), 0.5, name, 1) for i, row in enumerate(counts)]
    return EvaluationReport("c", "d", "0", "validation", int(counts.sum()), 0, 1, 0.5, 1, 0.1, results, counts.tolist())


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {f"network.blocks.{i}.projection.weight": torch.randn(2, 4, 3 + i) for i in range(3)}


CHARTS: dict[str, Callable[[], Figure]] = {
    "one epoch": lambda: learning_curves.draw([run(epochs=1)]),
    "no epoch": lambda: learning_curves.draw([Curves("new", [])]),
    "diverged": lambda: learning_curves.draw([run(diverges_after=1)]),
    "long names": lambda: learning_curves.draw([run(LONG), run("x" * 200), run("日本語")]),
    "2 classes": lambda: confusion_matrix.draw(report(2, LONG)),
    "10 classes": lambda: confusion_matrix.draw(report(10, LONG)),
    "some classes without images": lambda: confusion_matrix.draw(report(10, "cat", without=3)),
    "40 classes": lambda: confusion_matrix.draw(report(40, LONG)),
    "1000 classes": lambda: confusion_matrix.draw(report(1000, LONG)),
    "4 angles": lambda: filters.draw(octaves_of_blocks(3, 1), 4),
    "8 angles": lambda: filters.draw(octaves_of_blocks(11, 0), 8),
    "spectra": lambda: spectra.draw(spectra.singular_values(weights())),
    "many spectra": lambda: spectra.draw({f"layer {i}": np.ones(3) for i in range(50)}),
}


@pytest.mark.parametrize("chart", CHARTS)
def test_nothing_is_cut(chart: str) -> None:
    with style.styled():
        figure = CHARTS[chart]()
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert drawn.x0 > -0.02 and drawn.y0 > -0.02
    assert drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02


@pytest.mark.parametrize("images", [[3, 2, 1], [3, 0, 1]])
def test_both_sides_of_the_confusion_matrix_have_names(images: list[int]) -> None:
    """Also where the split has no image of a class."""
    confusion = [[count if row == column else 0 for column in range(3)] for row, count in enumerate(images)]
    classes = [ClassResult(str(i), f"class {i}", count, 1.0, None) for i, count in enumerate(images)]
    result = EvaluationReport("c", "d", "0", "validation", sum(images), 0, 0, 1, 1, 0, classes, confusion)
    with style.styled():
        axis = confusion_matrix.draw(result).axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == [one.name for one in classes]
    assert [label.get_text() for label in axis.get_yticklabels()] == [one.name for one in classes if one.images]


def test_values_that_are_not_finite_are_gaps_and_are_counted() -> None:
    with style.styled():
        loss = learning_curves.draw([run(epochs=4, diverges_after=2)]).axes[0]
    assert "4 values are not finite" in loss.get_title(loc="left")
    assert np.isnan(loss.lines[-1].get_ydata()).tolist() == [False, False, True, True]


def test_steps_lie_between_their_epochs() -> None:
    with style.styled():
        line = learning_curves.draw([run(epochs=2)]).axes[0].lines[0]
    assert line.get_xdata().tolist() == [0.5, 1.0, 1.5]


def test_the_mosaic_shows_the_filters_of_the_network() -> None:
    octave = octaves_of_blocks(1, 0)[0]
    shown, bank = filters.mosaic(octave, 4), filter_bank(octave, 4, filters.PERIOD, filters.PERIOD)
    middle = filters.SIDE // 2
    for column, one in enumerate([bank.phi, *bank.psi]):
        left = column * (filters.SIDE + 1)
        scale = np.abs(one).max()
        assert shown[middle, left + middle] == pytest.approx(one[0, 0].real / scale)
        assert shown[middle + 1, left + middle] == pytest.approx(one[1, 0].real / scale)
        below = filters.SIDE + 1
        assert shown[below + middle, left + middle + 1] == pytest.approx(np.imag(one[0, 1]) / scale, abs=1e-12)


def test_spectra_are_singular_values_of_the_complex_matrices() -> None:
    [name, *_], [first, *_] = zip(*spectra.singular_values(weights()).items(), strict=True)
    matrix = torch.complex(*next(iter(weights().values())).double())
    assert name == "block 1"
    np.testing.assert_allclose(first, torch.linalg.svdvals(matrix).numpy(), rtol=1e-6)


def test_worst_mistakes_are_the_same_in_batches_of_any_size() -> None:
    torch.manual_seed(0)
    probabilities, labels = torch.rand(90, 5).softmax(1), torch.arange(90) % 5
    probabilities[7] = math.nan
    classes = [ImageClass(id=str(i), name=f"class {i}", index=i) for i in range(5)]
    results = []
    for size in (90, 8, 1):
        worst = WorstMistakes(classes, torch.device("cpu"), most=6)
        for rows in torch.arange(90).split(size):
            worst.update(probabilities[rows], labels[rows], rows + 100)
        results.append(worst.result())
    assert results[0] == results[1] == results[2]
    assert [one.probability for one in results[0]] == sorted((one.probability for one in results[0]), reverse=True)
    assert all(one.name == f"class {(one.image - 100) % 5}" != one.predicted for one in results[0])
