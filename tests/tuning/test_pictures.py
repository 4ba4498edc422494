"""The pictures and findings of a search: what is drawn, for many trials, few and none."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from pipeline.figures import style
from tuning.results import files, pictures
from tuning.results.frontier import Row
from tuning.search_folder import Record


def trial(name: str, cost: int, errors: list[float], status: str = "completed", **point: object) -> tuple[Row, Record]:
    measured = dict(enumerate(errors, 1))
    widths = (4, 8)
    row = Row(name, widths, 99, cost, errors[-1] if errors else None, len(errors), status, images=100, seconds=1.5)
    return row, Record(status=status, errors=measured, point={"widths": list(widths), **point})  # type: ignore[arg-type]


TRIALS = [
    trial("a", 10_000, [0.9, 0.5], **{"model.skip": True, "optimizer.learning_rate": 0.01}),
    trial("b", 20_000, [0.8, 0.4], **{"model.skip": False, "optimizer.learning_rate": 1.0}),
    trial("c", 40_000, [0.8, 0.45], **{"model.skip": False, "optimizer.learning_rate": 0.1}),
    trial("d", 80_000, [0.9], "stopped early", **{"model.skip": True, "optimizer.learning_rate": 0.1}),
    trial("e", 90_000, [], "failed"),
]
ROWS, RECORDS = [row for row, _ in TRIALS], {row.name: record for row, record in TRIALS}


def texts(figure: object) -> str:
    from matplotlib.text import Text

    return " ".join(one.get_text() for one in figure.findobj(Text))  # type: ignore[attr-defined]


def test_the_frontier_is_drawn_against_all_costs_with_intervals() -> None:
    with style.styled():
        figure = pictures.draw_frontier(ROWS, "top1")
    assert [axes.get_xlabel() for axes in figure.axes] == list(pictures.COSTS.values())
    assert len(figure.axes[0].containers) == 3, "completed trials"
    [line] = [line for line in figure.axes[0].lines if line.get_label() == "frontier"]
    assert list(map(tuple, line.get_xydata())) == [(10_000, 0.5), (20_000, 0.4)]


def test_without_times_there_is_no_panel_of_times() -> None:
    row = Row("a", (4,), 9, 10, 0.5, 2, "completed", images=10)
    assert len(pictures.draw_frontier([row], "top1").axes) == 2


def test_every_trial_with_an_epoch_has_a_curve_and_kinds_are_counted() -> None:
    figure = pictures.draw_curves(ROWS, RECORDS, "top1")
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["frontier: 2", "completed: 1", "stopped early: 1"]
    curves = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert all(list(record.errors.values()) in curves for record in RECORDS.values() if record.errors)


def test_coordinates_show_what_differs_and_pass_through_the_values() -> None:
    figure = pictures.draw_coordinates(ROWS, RECORDS)
    shown = texts(figure)
    assert all(name in shown for name in ("skip", "learning_rate", "multiply-adds", "error"))
    assert "depth" not in shown, "equal in all trials"
    [lines] = figure.axes[0].collections
    heights = sorted([round(float(y), 3) for _, y in one] for one in lines.get_segments())  # type: ignore[attr-defined]
    assert heights == [[0.0, 0.5, 1.0, 0.5], [0.0, 1.0, 0.333, 0.0], [1.0, 0.0, 0.0, 1.0]], "rates are logarithmic"


def test_files_are_written_with_and_without_completed_trials(tmp_path: Path) -> None:
    for name, rows in {"all": ROWS, "failed": ROWS[-1:], "none": []}.items():
        (folder := tmp_path / name).mkdir()
        written = files.write(rows, RECORDS, folder, "top1")
        assert [file.name for file in written] == list(files.FILES)
        for file in written:
            assert file.stat().st_size
            if file.suffix == ".png":
                with Image.open(file) as image:
                    assert image.width == 1056
    assert "100 images do not tell apart" in (tmp_path / "all" / "findings.txt").read_text()
