"""Claims about the page of a report and the card of a run: complete, self-contained, and safe to open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_prep.common.errors import UserError
from pipeline.cli.reports import report
from pipeline.config import settings_io
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import (
    ClusterSettings,
    DataSettings,
    OptimizerSettings,
    RunSettings,
    Settings,
    TrainingSettings,
)
from pipeline.launch import launcher
from pipeline.metrics.report import EVERYTHING
from pipeline.report_page import page
from pipeline.runs import paths
from pipeline.tracking import run_card
from tuning.results import files, frontier

EVIL = "<img src=x onerror=alert(1)>|`*"


@pytest.fixture(scope="module")
def settings(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data=DataSettings(path=str(textures), image_size=16, flip=False),
        run=RunSettings(name="shown", storage=str(tmp_path_factory.mktemp("runs"))),
        model=ScatteringSettings(widths=(4, 4)),
        optimizer=OptimizerSettings(learning_rate=0.01),
        training=TrainingSettings(epochs=1, batch_size=40),
        cluster=ClusterSettings(workers=0),
    )


@pytest.fixture(scope="module")
def trained(settings: Settings) -> Path:
    return launcher.train(settings, progress=False).folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "shown"))


class Reader(HTMLParser):
    """What a browser would load and run of a page, and the text that it shows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.shown = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_the_page_has_everything_inside(trained: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(report, [str(trained), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    read = Reader(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(read.tags)
    assert [one for one in read.loaded if not one.startswith(("data:image/png;base64,", "#"))] == []
    assert not any(word in text for word in ("@import", "url(http", 'http-equiv="refresh'))
    assert read.tags.count("img") == 5, "the pictures"
    assert read.tags.count("svg") == 1, "the curves"
    top1 = json.loads((trained / paths.HISTORY).read_text())[-1]["metrics"]["validation/top1"]
    for expected in (f"{100 * top1:.2f}", "learning_rate: 0.01", "run.name=shown-again", "finished"):
        assert expected in read.shown


def test_names_from_outside_are_shown_and_never_obeyed(run: Path) -> None:
    file = run / paths.REPORT / EVERYTHING
    content = json.loads(file.read_text())
    content["classes"][0]["name"] = content["classes"][1]["taken_for"] = EVIL
    file.write_text(json.dumps(content))
    (run / paths.EVENTS).write_text(f"2026-01-01 00:00:00  {EVIL}\x1b[2J\n")
    environment = json.loads((run / paths.ENVIRONMENT).read_text())
    (run / paths.ENVIRONMENT).write_text(json.dumps({**environment, "hardware.cpu": EVIL}))
    read = Reader(page.render([run]))
    assert read.shown.count(EVIL) >= 4
    assert read.handlers == [] and "x" not in read.loaded
    assert "\x1b" not in read.shown
    card = run_card.markdown(run_card.read(run))
    assert r"\<img src=x onerror=alert(1)\>\|\`\*" in card and EVIL not in card


def test_runs_are_compared_by_what_differs(trained: Path, run: Path, settings: Settings) -> None:
    other = run.rename(run.with_name("other"))
    text = (other / paths.IDENTITY).read_text()
    (other / paths.IDENTITY).write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    read = Reader(page.render([trained, other]))
    rows = [row for row in read.shown.split("Settings that differ")[1].split("Learning curves")[0].split("\n") if row]
    assert "".join(rows).split("learning_rate")[1].startswith("0.010.02")
    assert "batch_size" not in "".join(rows)
    assert read.tags.count("svg") == 3 and "other" in read.shown


def damages(run: Path) -> Iterator[str]:
    yield "nothing"
    (run / paths.REPORT / EVERYTHING).write_text('{"checkpoint"')
    yield EVERYTHING
    (run / paths.PICTURES / paths.MISTAKES).write_bytes(b"no picture")
    shutil.rmtree(run / paths.CHECKPOINTS)
    (run / paths.NETWORK).write_text("[]")
    yield paths.NETWORK
    (run / paths.HISTORY).write_text('[{"epoch": 1')
    (run / paths.STEPS).write_text('{"step": 1\n')
    yield "no epoch is finished yet"
    (run / paths.IDENTITY).write_text("id: [")
    yield "damaged"


def test_a_damaged_run_gives_a_page_of_what_is_there(run: Path) -> None:
    for expected in damages(run):
        shown = Reader(page.render([run])).shown
        assert expected == "nothing" or expected in shown
        assert run_card.markdown(run_card.read(run))


def test_a_run_that_has_just_begun_gives_a_page(run: Path) -> None:
    for one in list(run.iterdir()):
        if one.name != paths.IDENTITY:
            shutil.rmtree(one) if one.is_dir() else one.unlink()
    read = Reader(page.render([run]))
    assert "interrupted" in read.shown and "0 of 1 epochs" in read.shown
    assert "img" not in read.tags


def test_a_search_gives_its_table_and_frontier(run: Path) -> None:
    search = run.parent.with_name("search")
    search.mkdir()
    (search / paths.SEARCH).write_text("id: x\n")
    shutil.copytree(run, search / "a")
    assert "1 trial so far" in page.render([search])
    rows = [
        frontier.Row("a", (4, 4), 5426, 1_031_168, 0.25, 1, "completed"),
        frontier.Row("b", (2,), 99, 1_000, None, 0, "failed", EVIL),
    ]
    files.write(rows, {}, search, "top1")
    read = Reader(page.render([search]))
    assert "0.2500 *" in read.shown and f"failed: {EVIL}" in read.shown and "1,031,168" in read.shown
    assert read.tags.count("img") == 3 and "no power law" in read.shown and read.handlers == []
    with pytest.raises(UserError, match="search is a search: its report is a page of its own"):
        page.render([search, run])


def test_what_is_no_run_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (tmp_path / "gone", "does not exist: name the folder of a run"),
        (tmp_path / "empty", "is not a run: it has no run.yaml"),
        (run.parent, f"is not a run: it holds runs, such as {run}"),
        (paths.stored_checkpoints(run)[-1], f"is a checkpoint: name the folder of its run, {run}"),
    ):
        with pytest.raises(UserError) as caught:
            page.render([folder])
        assert message in str(caught.value)


def test_only_a_report_is_replaced(run: Path, tmp_path: Path) -> None:
    page.write([run], tmp_path / "page.html")
    page.write([run], tmp_path / "page.html")
    (tmp_path / "thesis.html").write_text("years of work")
    for output, message in (
        (tmp_path / "thesis.html", "exists and is no report"),
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "page.html", "is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            page.write([run], output)
    assert (tmp_path / "thesis.html").read_text() == "years of work"


def test_the_card_repeats_the_run(run: Path, settings: Settings, tmp_path: Path) -> None:
    facts = run_card.read(run)
    command = facts.repeat()[-1]
    assert command == "phasecollapse train settings.yaml run.name=shown-again"
    (tmp_path / "settings.yaml").write_text(settings_io.to_yaml(settings))
    *_, name, override = command.split()
    again = settings_io.load(tmp_path / name, [override])
    assert again == settings.model_copy(update={"run": settings.run.model_copy(update={"name": "shown-again"})})
    card = run_card.markdown(facts)
    assert f"| top-1 | {100 * facts.epochs[-1].metrics['validation/top1']:.4g} % |" in card
    for name in run_card.ARTIFACTS:
        assert (f"`{name}`" in card) == (run / name).exists()
        assert (f"]({run_card.ARTIFACT}{name})" in run_card.markdown(facts, linked=True)) == (run / name).exists()
