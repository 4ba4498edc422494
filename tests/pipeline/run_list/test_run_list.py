"""Claims about the list of runs: what it says of folders, and what it deletes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from mlflow import MlflowClient

from data_prep.common.errors import UserError
from pipeline.cli.runs import runs
from pipeline.config.schema import Settings
from pipeline.config.settings_io import resolve
from pipeline.run_list import catalog
from pipeline.runs import claimed_folder, history, paths
from pipeline.runs.history import EpochRecord
from pipeline.runs.run_folder import RunIdentity
from pipeline.tracking.mlflow_store.store import default_store
from tests.helpers.tracked import open_run
from tuning.config import SearchSettings
from tuning.search_folder import Identity, Record, SearchFolder
from tuning.space.candidate import Candidate


def settings(storage: Path, seed: int = 0) -> Settings:
    content: dict[str, Any] = {
        "data": {"path": "/data/noise"},
        "run": {"storage": str(storage)},
        "training": {"epochs": 2, "seed": seed},
    }
    return resolve(Settings, content, "test")


def make_run(storage: Path, name: str, *top1: float, seed: int = 0) -> Path:
    """The folder of a run with these accuracies."""
    (storage / name).mkdir(parents=True)
    identity = RunIdentity(id=name, data_digest="d", settings=settings(storage, seed))
    claimed_folder.write_identity(storage / name, paths.IDENTITY, identity)
    common = {"train/seconds": 30.0, "train/images_per_second": 812.4}
    records = [EpochRecord(n, 1e9 + n, {**common, "validation/top1": one}) for n, one in enumerate(top1, 1)]
    history.write(storage / name, records)
    (storage / name / paths.NETWORK).write_text('{"parameters": 12345, "multiply_adds": 6700000}')
    return storage / name


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """Three runs, a search with three trials, and what is no run."""
    folder = tmp_path / "runs"
    make_run(folder, "done", 0.5, 0.75)
    make_run(folder, "stopped", 0.8, seed=1)
    (make_run(folder, "broken", seed=2) / paths.ERROR_LOG).write_text("the loss became nan [red]\n\nTraceback")
    search = SearchSettings.model_validate(
        {"train": settings(folder), "search": {"name": "widths", "space": {"depth": [2], "width": [8]}}}
    )
    (folder / "widths").mkdir()
    widths = SearchFolder(folder / "widths", Identity(id="widths", data_digest="d", settings=search))
    widths.begin()
    widths.expect([Candidate(one) for one in ((8, 8), (8, 16), (16, 16))])
    make_run(folder / "widths", "8-8", 0.4, 0.6)
    widths.update("8-8", Record(status="completed", errors={1: 0.6, 2: 0.4}))
    make_run(folder / "widths", "8-16", 0.3)
    widths.update("8-16", Record(status="stopped early", errors={1: 0.7}))
    (folder / "artifacts").mkdir()
    (folder / "mlflow.lock").touch()
    return folder


def command(*arguments: object) -> None:
    runs.main([str(argument) for argument in arguments], standalone_mode=False)


def test_each_run_is_listed_with_its_trials_below_its_search(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("--storage", storage, "--sort", "name")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == [
        *("broken", "done", "stopped", "widths"),
        *("widths/16-16", "widths/8-16", "widths/8-8"),
    ]
    assert " ".join(lines[1]).endswith("noise the loss became nan [red]")
    assert lines[2] == [
        "done",
        "finished",
        "2/2",
        "75.00",
        "75.00",
        "12.3k",
        "6.70M",
        "812",
        "1",
        "min",
        "00",
        "s",
        "noise",
    ]
    assert " ".join(lines[4]) == "widths interrupted 60.00 1 min 30 s noise 2 of 3 trials ended"
    assert [line[1] for line in lines[1:]] == [
        *("failed", "finished", "interrupted", "interrupted"),
        *("waiting", "stopped", "finished"),
    ]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_table_fits_a_terminal_and_keeps_the_ends_of_names(
    storage: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(storage, f"noise-collapse-{'32-64x2-' * 5}1f00ba12", 0.9)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    command("--storage", storage)
    shown = click.unstyle(capsys.readouterr().out).splitlines()
    assert all(len(line) <= width for line in shown) and len(shown) == 9
    assert any("-1f00ba12 " in line and "90.00" in line for line in shown)


def test_a_run_that_a_process_holds_is_running_there_and_not_deleted(storage: Path) -> None:
    (storage / "stopped" / paths.OWNER).write_text("process 7 on node-1")
    with claimed_folder.held(storage / "stopped", paths.LOCK, setting="", busy=str):
        (storage / "stopped" / paths.PROGRESS).touch()
        found = catalog.find(storage, ["stopped"])[0]
        assert (found.status, found.note) == ("running", "process 7 on node-1")
        with pytest.raises(UserError, match="at work in process 7 on node-1: stop that"):
            command("delete", "stopped", "--storage", storage, "--yes")
    with (
        claimed_folder.held(storage / "widths", paths.SEARCH_LOCK, setting="", busy=str),
        pytest.raises(UserError, match=r"search .*widths is at work in another process"),
    ):
        command("delete", "widths", "--storage", storage, "--yes")
    assert (storage / "stopped").exists() and (storage / "widths").exists()


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["top1>0.7"], ["done", "stopped"]),
        (["top1>=0.75", "status!=finished"], ["stopped"]),
        (["training.seed=1"], ["stopped"]),
        (["top1=none", "kind=run"], ["broken"]),
        (["name=*8-8"], ["widths", "widths/8-8"]),
        (["model.widths=[64, 128]"], []),
    ],
)
def test_conditions_choose_runs(
    storage: Path, capsys: pytest.CaptureFixture[str], conditions: list[str], names: list[str]
) -> None:
    filters = [part for condition in conditions for part in ("--filter", condition)]
    command("--storage", storage, "--json", "--columns", "name", "--sort", "name", *filters)
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter", "top2>1"], "no run has 'top2': did you mean 'top1'"),
        (["--sort", "training.sed"], r"did you mean 'training\.seed'"),
        (["--filter", "status>1"], "compares '.*' with '1': compare numbers by size"),
        (["--filter", "finished"], "not of the form KEY=VALUE"),
        (["compare", "don", "stopped"], "holds no run or search 'don': did you mean 'done'"),
        (["delete", "widths/8-8", "--yes"], "trial of search widths"),
        (["delete", "done"], "standard input is no terminal"),
        (["delete", "link", "--yes"], "link is a link to .*elsewhere"),
        (["delete", "../elsewhere", "--yes"], r"holds no run or search '\.\./elsewhere'"),
    ],
)
def test_what_is_wrong_is_named(storage: Path, arguments: list[str], message: str) -> None:
    elsewhere = make_run(storage.parent, "elsewhere")
    (storage / "link").symlink_to(elsewhere)
    with pytest.raises(UserError, match=message):
        command(*arguments, "--storage", storage)
    assert (elsewhere / paths.IDENTITY).exists()


def test_sorted_runs_are_written_as_csv(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command("--storage", storage, "--csv", "--sort", "-best_top1", "--columns", "name,best_top1,validation/top1")
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["name"], row["best_top1"]) for row in rows] == [
        *(("stopped", "0.8"), ("done", "0.75"), ("widths", "0.6"), ("widths/8-8", "0.6"), ("widths/8-16", "0.3")),
        *(("widths/16-16", ""), ("broken", "")),
    ]


def test_a_comparison_shows_settings_that_differ_and_all_results(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command("compare", "done", storage / "stopped", "--storage", storage)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["training.seed"] == ["0", "1"]
    assert "training.epochs" not in rows
    assert rows["validation/top1"] == ["0.75", "0.8"]
    command("compare", "done", "stopped", "--storage", storage, "--json")
    content = json.loads(capsys.readouterr().out)
    assert content["done"]["settings"] == {"training.seed": 0}
    assert content["stopped"]["results"]["status"] == "interrupted"


@pytest.mark.slow
def test_a_deleted_run_is_gone_from_the_folder_and_from_mlflow(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = storage.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (storage / "done" / "link").symlink_to(outside)
    store, ids = default_store(storage), {}
    for name in ("done", "stopped", "widths", "8-8"):
        tracker = open_run(store, name)
        tracker.log_text("x" * 5000, "notes.txt")
        ids[name] = tracker.run_id
    client = MlflowClient(store.uri)
    experiment = client.get_experiment_by_name("experiment").experiment_id
    model = client.create_logged_model(experiment, "best", source_run_id=ids["done"])
    client.log_model_artifact(model.model_id, str(storage / "done" / paths.HISTORY))
    size = sum(file.stat().st_size for file in (storage / "done").iterdir() if file.is_file())
    command("delete", "done", "widths", "--storage", storage, "--yes")
    said = capsys.readouterr().out
    assert "and 3 tracked runs" in said and float(said.split("(")[1].split()[0]) >= (size + 15_000) / 1000
    assert [one.name for one in catalog.read(storage)] == ["broken", "stopped"]
    stages = {name: client.get_run(run_id).info.lifecycle_stage for name, run_id in ids.items()}
    assert stages == {"done": "deleted", "stopped": "active", "widths": "deleted", "8-8": "deleted"}
    assert not client.search_logged_models([experiment]) and not list((storage / "artifacts").rglob(paths.HISTORY))
    kept = [path.parts[-3] for path in (storage / "artifacts").rglob("notes.txt")]
    assert kept == [ids["stopped"]]
    assert (outside / "file").read_text() == "mine"


def test_a_list_needs_neither_torch_nor_ray_nor_mlflow() -> None:
    code = "import sys; from pipeline.run_list import catalog, table; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"pipeline.run_list.table", "pydantic"} <= {*modules}
    assert {"torch", "ray", "mlflow", "pyarrow"} & {*modules} == set()
