"""Claims about the command line as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest

from data_prep.common.errors import UserError
from pipeline.cli import main
from pipeline.cli import train as train_command
from pipeline.config.schema import Settings
from pipeline.config.section import Section
from pipeline.config.settings_io import may_change, sections
from pipeline.launch.launcher import Outcome
from tuning.config import SearchSettings


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs the command in this process: exit status, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["phasecollapse", *arguments])
    try:
        main.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def offer(monkeypatch: pytest.MonkeyPatch, action: Callable[[], None]) -> None:
    """Makes ``phasecollapse act`` call `action`."""
    monkeypatch.setattr(sys.modules[__name__], "act", click.Command("act", callback=action), raising=False)
    point = EntryPoint("act", f"{__name__}:act", main.GROUP)
    monkeypatch.setattr(main, "entry_points", lambda group: [point])


EXPLAINED = r"^  ([a-z0-9_.]+) (?:=|\(required\)).*((?:\n {6}.*)*)"


@pytest.mark.parametrize(("command", "tree"), [("train", Settings), ("tune", SearchSettings)])
def test_every_setting_is_explained(command: str, tree: type[Section]) -> None:
    ask = [sys.executable, "-m", "pipeline.cli.main", command, "--settings"]
    shown = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
    named = re.findall(r"^  ([a-z0-9_.]+) (?:=|\(required\))", shown, re.MULTILINE)
    assert named == leaves(tree)
    assert len(set(named)) > 40
    assert "One of: float32, bfloat16." in " ".join(shown.split())
    words = {name: " ".join(text.split()) for name, text in re.findall(EXPLAINED, shown, re.MULTILINE)}
    resumable = [name for name, text in words.items() if text.endswith("May change when a run is resumed.")]
    assert set(resumable) == may_change(tree)


def leaves(tree: type[Section], prefix: str = "") -> list[str]:
    """The dotted names of a tree's settings, in its order, without reading any default."""
    names: list[str] = []
    for name, field in tree.model_fields.items():
        inner = sections(field.annotation).values()
        names += [leaf for section in inner for leaf in leaves(section, f"{prefix}{name}.")] or [f"{prefix}{name}"]
    return names


def test_the_list_of_commands_says_what_each_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output, _ = run(monkeypatch, capsys, "--help")
    assert status == 0
    assert re.search(r"train +Train a network on a prepared data set; run again to resume\.", output)


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, output, _ = run(monkeypatch, capsys, "--version")
    assert (status, output.split()[0]) == (0, "phasecollapse")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "error: there is no command 'trian': did you mean 'train'?"),
        (
            ["dance"],
            "error: there is no command 'dance': choose one of: describe, evaluate, export, inspect, merge, predict, "
            "prepare, register, report, runs, search, stage, sync, train, tune, ui, verify",
        ),
        (["train"], "error: Missing argument 'CONFIG'."),
        (["ui", "--port", "many"], "error: Invalid value for '--port': 'many' is not a valid integer range."),
        (["ui", "a\x1b[2J"], r"error: Got unexpected extra argument (a\x1b[2J)"),
        (["train", "nowhere.yaml"], "error: configuration file nowhere.yaml does not exist"),
        (
            ["ui", "--uri", "http://127.0.0.1:1"],
            "error: --uri: http://127.0.0.1:1 is unreachable (connection refused): check it, or leave --uri out",
        ),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], message: str
) -> None:
    assert run(monkeypatch, capsys, *arguments) == (2, "", f"{message}\n")


def test_an_error_of_the_user_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        raise UserError("data.path is wrong: correct it")

    offer(monkeypatch, action)
    assert run(monkeypatch, capsys, "act") == (2, "", "error: data.path is wrong: correct it\n")


def test_ctrl_c_ends_quietly_with_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def action() -> None:
        raise KeyboardInterrupt

    offer(monkeypatch, action)
    assert run(monkeypatch, capsys, "act") == (130, "", "\ninterrupted: rerun the same command to resume\n")


def test_a_defect_shows_where_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def action() -> None:
        raise ZeroDivisionError

    offer(monkeypatch, action)
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, capsys, "act")


def test_a_command_that_cannot_be_loaded_harms_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = EntryPoint("broken", "no_such_package.commands:broken", main.GROUP)
    train = EntryPoint("train", "pipeline.cli.train:train", main.GROUP)
    monkeypatch.setattr(main, "entry_points", lambda group: [broken, train])
    status, output, _ = run(monkeypatch, capsys, "--help")
    assert status == 0
    assert "broken  cannot be loaded: No module named 'no_such_package'" in output
    assert "train   Train a network" in output
    status, _, complaint = run(monkeypatch, capsys, "broken")
    assert status == 2
    assert complaint.startswith("error: command 'broken' cannot be loaded")


def test_the_summary_states_result_and_folder() -> None:
    metrics = {"holdout/top1": 0.5, "holdout/top5": 0.875}
    text = train_command.summary(Outcome(Path("runs/a"), 3, metrics, "id", already_finished=True), "holdout")
    assert text == "run a had already finished: 3 epochs, holdout top-1 50.00 %, top-5 87.50 %\nfolder: runs/a"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("prepare", "", "out"), "SOURCE"),
        (("prepare", "source", ""), "OUTPUT"),
        (("stage", "", "out"), "DATASET"),
        (("verify", ""), "DATASET"),
        (("train", ""), "CONFIG"),
        (("tune", ""), "CONFIG"),
        (("evaluate", "run", ""), "DATA"),
        (("predict", "run", ""), "IMAGES"),
        (("evaluate", "run", "data", "--output", ""), "--output"),
        (("report", ""), "RUN..."),
        (("search", "show", ""), "SEARCH"),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(
    arguments: tuple[str, ...], name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(monkeypatch, capsys, *arguments)
    assert status == 2 and error.startswith(f"error: {name} is empty: name a path"), error


@pytest.mark.parametrize("arguments", [("predict", "x.jpg"), ("export",)])
def test_the_password_in_the_address_of_a_network_is_not_shown(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jpg").write_bytes(b"")
    status, _, error = run(monkeypatch, capsys, arguments[0], "s3://user:secret@bucket/run", *arguments[1:])
    assert status == 2 and "SOURCE: s3://bucket/run is an address" in error and "secret" not in error
