"""Claims about stock FFCV as a reader: it sees what this package sees, it trains, and what it cannot do is refused."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.common.errors import UserError
from data_prep.format.beton import Shard
from data_prep.format.manifest import load_manifest
from data_prep.loading.ffcv_reader import FfcvFile
from data_prep.maintain.ffcv_check import compare_with_ffcv
from data_prep.maintain.merge import merge
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.launch import launcher
from pipeline.runs import history
from tests.helpers.runs import write_configuration

pytestmark = pytest.mark.slow

PROGRAM = "import sys; sys.argv[0] = 'phasecollapse'; from pipeline.cli.main import main; main()"


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command of this package in a process of its own: FFCV changes the number of threads, and warns."""
    return subprocess.run([sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def merged(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return merge(textures, tmp_path_factory.mktemp("merged") / "textures").folder


def test_verification_finds_equal_labels_and_pixels(textures: Path, merged: Path) -> None:
    for folder in (textures, merged):
        done = command("verify", folder, "--reader", "ffcv", "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["images"] == 310 and report["problems"] == []


@pytest.mark.filterwarnings("ignore")
def test_another_label_and_other_pixels_are_found(
    merged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = merge(merged, tmp_path / "other").folder
    first, second = 3, 5
    read = FfcvFile.__getitem__

    def changed(self: FfcvFile, sample: int) -> Any:
        found = read(self, sample)
        if sample == first:
            return found._replace(label=found.label + 1)
        pixels = found.pixels.copy()
        pixels[0, 0, 0] ^= 255 if sample == second else 0
        return found._replace(pixels=pixels)

    monkeypatch.setattr(FfcvFile, "__getitem__", changed)
    report = compare_with_ffcv(other)
    reasons = {(problem.sample, problem.reason) for problem in report.problems if "train" in problem.file}
    label = Shard(other / load_manifest(other).splits["train"].files[0].file).read(first).label
    assert reasons == {
        (first, f"FFCV reads the label {label + 1}, this package {label}"),
        (second, "1 of 4096 pixels differ from FFCV's"),
    }


@pytest.mark.filterwarnings("ignore")
def test_an_image_that_only_ffcv_accepts_is_found(merged: Path, tmp_path: Path) -> None:
    other = merge(merged, tmp_path / "other").folder
    path = other / load_manifest(other).splits["validation"].files[0].file
    place = Shard(path).locate(np.array([0]))
    with path.open("r+b") as file:  # the image ends too early, which FFCV ignores
        file.seek(int(place.start[0] + place.size[0]) - 600)
        file.write(b"\xff\xd9" * 8)
    [problem] = compare_with_ffcv(other).problems
    assert problem.sample == 0 and problem.reason.startswith("it cannot be decoded")


def test_a_run_trains_with_stock_ffcv_and_evaluates_every_image(merged: Path, tmp_path: Path) -> None:
    options = ("cluster.workers=0", "run.name=one", "training.epochs=2", "training.batch_size=50", "data.reader=ffcv")
    file = write_configuration(tmp_path, merged, *options)
    done = command("train", file)
    assert done.returncode == 0, done.stderr
    assert "warning: data.reader is ffcv: damaged images are not noticed" in done.stderr
    records = history.read(tmp_path / "runs" / "one")
    assert [record.epoch for record in records] == [1, 2]
    evaluation = json.loads((tmp_path / "runs" / "one" / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["images"] == 70


def test_several_files_a_split_are_refused_with_the_remedy(textures: Path, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, textures, "data.reader=ffcv")
    for options in (["cluster.workers=0"], ["cluster.workers=2", "--dry-run"]):
        done = command("train", file, *options)
        assert done.returncode == 2
        assert f"run 'phasecollapse merge {textures}' first" in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        "data.on_damage=skip",
        "data.shuffle=blocks",
        "data.augmentations=[grayscale]",
        "cluster.min_workers=1",
        "checkpoint.every_steps=5",
        "training.initial_image_size=8",
    ],
)
def test_what_ffcv_cannot_do_is_refused_by_name(textures: Path, tmp_path: Path, option: str) -> None:
    file = write_configuration(tmp_path, textures, "data.reader=ffcv", option)
    with pytest.raises(UserError, match=option.partition("=")[0].rpartition(".")[2]):
        settings_io.load(file)


def test_without_ffcv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import_as_ever = builtins.__import__

    def without_ffcv(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "ffcv":
            raise ModuleNotFoundError("No module named 'ffcv'")
        return import_as_ever(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ffcv)
    with pytest.raises(UserError, match=r"install it: pip install 'phasecollapse\[ffcv\]'"):
        FfcvFile(tmp_path / "a.beton")


def test_a_run_of_several_workers_is_checked_before_they_start(merged: Path, tmp_path: Path) -> None:
    """Stock FFCV's loader needs the workers' process group."""
    settings = settings_io.resolve(
        Settings,
        {
            "data": {"path": str(merged), "reader": "ffcv", "image_size": 16, "flip": False},
            "cluster": {"workers": 2},
            "checkpoint": {"every_steps": 0},
            "training": {"batch_size": 16},
        },
        "test",
    )
    launcher.check(settings, load_manifest(merged))
    assert launcher.run_plan.plan(settings, load_manifest(merged)).steps_per_epoch == 240 // 16
