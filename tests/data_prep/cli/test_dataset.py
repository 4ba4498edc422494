"""The commands for prepared data sets: what they print, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from data_prep.cli import dataset
from data_prep.common.errors import UserError
from data_prep.format.manifest import read_manifest
from tests.helpers.datasets import content, write_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set")
    return tmp_path / "set"


def run(command: str, *arguments: object) -> tuple[str, Exception | None]:
    """Calls a command as the phasecollapse program does: what it prints, and the sentence that it ends with."""
    result = CliRunner().invoke(getattr(dataset, command), [str(argument) for argument in arguments])
    error = result.exception
    if error is not None and not isinstance(error, UserError):
        raise error
    return result.stdout, error


def test_from_shards_to_a_verified_staged_data_set_in_three_commands(folder: Path, tmp_path: Path) -> None:
    digest = read_manifest(folder).digest[:12]
    before = content(folder)
    assert run("merge", folder)[0].startswith(f"{folder} is merged: 22 train and 9 validation images in 2 files, ")
    assert run("merge", folder)[0].startswith(f"{folder} was already merged: 22 train")
    output, error = run("verify", folder, "--threads", 2)
    assert error is None and output.startswith(f"{folder} is whole, every hash agrees and every image decodes: 22 ")
    output, error = run("verify", folder, "--hashes-only")
    assert error is None and output.startswith(f"{folder} is whole, every file has its hash: 22 ")
    output, error = run("stage", folder, tmp_path / "disk")
    assert output == f"{tmp_path}/disk/noise-{digest}\n"
    assert run("stage", folder, tmp_path / "disk", "--check")[0] == output
    assert content(Path(output.strip())) == before


def test_verify_lists_problems_and_ends_with_a_sentence_and_a_remedy(folder: Path) -> None:
    for path in folder.glob("*.beton"):
        path.rename(path.with_suffix(".old.beton"))
    output, error = run("verify", folder)
    assert output.splitlines()[:2] == [
        "train-00000.beton: it is missing",
        "train-00000.old.beton: the manifest does not name it: remove it",
    ]
    assert str(error) == f"{folder} has 10 problems: prepare it again, or copy it again from an intact copy"
    printed, error = run("verify", folder, "--json")
    report = json.loads(printed)
    assert error is not None and not report["whole"]
    assert report["problem_count"] == len(report["problems"]) == 10 and report["images"] == 0
    assert report["problems"][0] == {"file": "train-00000.beton", "sample": None, "reason": "it is missing"}


def test_json_of_a_whole_data_set_is_for_programs(folder: Path) -> None:
    report = json.loads(run("verify", folder, "--json")[0])
    assert report["whole"] and report["images"] == 31 and report["digest"] == read_manifest(folder).digest
    summary = json.loads(run("inspect", folder, "--json", "--no-sheet")[0])
    assert summary["sheet"] is None and summary["splits"]["train"]["samples"] == 22


def test_inspect_says_where_its_sheet_is_and_a_sheet_is_no_stranger_to_verify(folder: Path, tmp_path: Path) -> None:
    output, _ = run("inspect", folder)
    assert output.splitlines()[-1] == f"contact sheet: {folder}/contact-sheet.png"
    assert run("verify", folder)[1] is None
    golf = tmp_path / "one.png"
    run("inspect", folder, "--sheet", golf, "--class", "noise 1", "--split", "train", "--columns", 3, "--rows", 1)
    with Image.open(golf) as small, Image.open(folder / dataset.SHEET) as large:
        assert small.height < large.height and small.width < large.width
    assert "contact sheet" not in run("inspect", folder, "--no-sheet")[0]


def test_what_cannot_be_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    for command, arguments, message in (
        ("merge", (tmp_path / "none",), "does not exist"),
        ("verify", (tmp_path,), "has no manifest.json"),
        ("inspect", (tmp_path,), "has no manifest.json"),
        ("stage", (tmp_path / "none", tmp_path / "disk"), "manifest.json is missing"),
        ("inspect", (folder, "--sheet", tmp_path / "no" / "a.png"), "choose another with --sheet, or --no-sheet"),
        ("inspect", (folder, "--sheet", "a.png", "--no-sheet"), "exclude each other"),
        ("inspect", (folder, "--class", "dog"), "there is no class dog"),
    ):
        _, error = run(command, *arguments)
        assert message in str(error) and "\n" not in str(error), (command, error)
