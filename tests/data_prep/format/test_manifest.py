"""Manifests from elsewhere: one that contradicts itself, is absurd, or is no file is refused in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import UserError
from data_prep.format import manifest as manifests
from data_prep.format.manifest import MANIFEST_FILE, load_manifest, read_manifest
from data_prep.maintain.stage import stage
from tests.helpers.datasets import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    write_dataset(folder)
    return folder


def change(key: str, value: object) -> Callable[[Any], None]:
    def apply(train: Any) -> None:
        train[key] = value

    return apply


def name_one_file_twice(train: Any) -> None:
    train["files"][1]["file"] = train["files"][0]["file"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda train: train["files"].pop(), "train has 22 samples, but its files have 15"),
        (lambda train: train["parts"].pop(), "train has 22 samples, but its parts have 15"),
        (change("samples_per_class", [20, 1, 0]), "train has 22 samples, but its classes have 21"),
        (change("samples_per_class", [22]), "train counts the samples of 1 classes"),
        (change("samples_per_class", [22, 0, 0, 0]), "train counts the samples of 4 classes"),
        (change("samples", 10**18), "splits.train.samples: "),
        (lambda train: train["files"][0].update(bytes=10**18), "splits.train.files.0.bytes: "),
        (lambda train: train["files"][0].update(samples=0), "splits.train.files.0.samples: "),
        (name_one_file_twice, "it names train-00000.beton twice"),
    ],
)
def test_splits_that_contradict_themselves_are_refused_and_not_staged(
    folder: Path, tmp_path: Path, edit: Callable[[Any], None], message: str
) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text())
    edit(content["splits"]["train"])
    assert_refused(folder, tmp_path, content, message)


@pytest.mark.parametrize(
    ("numbers", "ids", "message"),
    [
        ((0, 2, 1), "abc", "its classes are not numbered 0, 1, 2, …"),
        ((1, 2, 3), "abc", "its classes are not numbered 0, 1, 2, …"),
        ((0, 1, 2), "aba", "two of its classes have the same id"),
    ],
)
def test_classes_that_contradict_themselves_are_refused_and_not_staged(
    folder: Path, tmp_path: Path, numbers: tuple[int, ...], ids: str, message: str
) -> None:
    content = json.loads((folder / MANIFEST_FILE).read_text())
    for each, number, name in zip(content["classes"], numbers, ids, strict=True):
        each.update(index=number, id=name)
    assert_refused(folder, tmp_path, content, message)


def assert_refused(folder: Path, tmp_path: Path, content: Any, message: str) -> None:
    changed = tmp_path / "set"
    changed.mkdir()
    for path in folder.glob("*.beton"):
        os.link(path, changed / path.name)
    (changed / MANIFEST_FILE).write_text(json.dumps(content))
    for use in (load_manifest, lambda path: stage(str(path), tmp_path / "disk")):
        with pytest.raises(UserError) as error:
            use(changed)
        assert f"manifest.json is damaged ({message}" in str(error.value)
        assert str(error.value).endswith(": prepare the data set again")
    assert not (tmp_path / "disk").exists()


@pytest.mark.timeout(20)
def test_what_is_no_file_blocks_no_command(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_FILE)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read: it is not a regular file"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match=r"manifest\.json is not a regular file"):
        stage(str(tmp_path), tmp_path.parent / "disk")
    (tmp_path / MANIFEST_FILE).unlink()
    (tmp_path / MANIFEST_FILE).mkdir()
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)


def test_the_size_of_a_manifest_is_bounded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "LARGEST_MANIFEST", 100)
    with pytest.raises(UserError, match=r"manifest\.json has more than 100 bytes, and is no manifest"):
        read_manifest(folder)


def test_a_manifest_of_a_newer_program_asks_for_an_upgrade(textures: Path, tmp_path: Path) -> None:
    content = json.loads((textures / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**content, "format_version": 3}))
    with pytest.raises(UserError, match=r"newer phasecollapse \(format 3; this one reads 2\): upgrade phasecollapse"):
        read_manifest(tmp_path)
