"""Sources by name: what recognizes a location, which options each takes, and one from outside this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data_prep.common.errors import UserError
from data_prep.format.manifest import load_manifest
from data_prep.sources.registry import SOURCES, SourceType, open_source, recognize

CSV_SOURCE = '''
"""Images that a file labels.csv lists, in lines such as train,3,images/0001.jpg."""

import csv
from pathlib import Path

from data_prep.sources.image_index import IndexedImage
from data_prep.sources.labelled import LabelledImage, to_index
from data_prep.sources.registry import SOURCES, SourceType


def recognizes(folder):
    return "labels.csv" in folder.names


def open_source(location, class_names=None):
    return CsvSource(location, class_names)


class CsvSource:
    kind = "csv"

    def __init__(self, location, class_names):
        self.location, self.options, self.class_names = location, {}, class_names

    def list(self, scratch, executor):
        splits = {"train": [], "validation": []}
        for split, label, name in csv.reader(Path(self.location, "labels.csv").open()):
            path = Path(self.location, name)
            image = IndexedImage(name, str(path), offset=0, size=path.stat().st_size)
            splits[split].append(LabelledImage(int(label), image))
        return to_index(self.location, splits, scratch, self.class_names)


SOURCES.register("csv", SourceType(__name__))
'''


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command `prepare`, with the module csv_source of `folder` as an extension."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "prepare", *map(str, arguments)],
        env={**os.environ, "PHASECOLLAPSE_EXTENSIONS": "csv_source", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def extension(tmp_path: Path) -> Path:
    """A folder with a module that registers a source, and images that it reads."""
    (tmp_path / "csv_source.py").write_text(CSV_SOURCE, encoding="utf-8")
    lines = []
    (tmp_path / "images").mkdir()
    for split in ("train", "validation"):
        for label in range(2):
            name = f"images/{split}{label}.png"
            Image.new("RGB", (40, 30), (100 * label, 0, 0)).save(tmp_path / name)
            lines.append(f"{split},{label},{name}\n")
    (tmp_path / "labels.csv").write_text("".join(lines), encoding="utf-8")
    return tmp_path


def test_a_source_of_another_package_is_recognized_and_prepared(extension: Path) -> None:
    done = run(extension, extension, extension / "out")
    assert done.returncode == 0, done.stderr
    manifest = load_manifest(extension / "out")
    assert manifest.source.kind == "csv" and manifest.splits["train"].samples_per_class == [1, 1]


def test_its_name_is_a_choice_of_the_option(extension: Path) -> None:
    assert "csv" in run(extension, "--help").stdout
    assert "is not one of" in (failed := run(extension, "--kind", "xyz", "a", "b")).stderr and "'csv'" in failed.stderr
    assert run(extension, "--kind", "csv", extension, extension / "out").returncode == 0


def test_what_recognizes_a_location_first_opens_it(tmp_path: Path) -> None:
    assert recognize(str(tmp_path)) == recognize(str(tmp_path / "nowhere")) == "folders"
    (tmp_path / "data").mkdir()
    for name, kind in (
        ("data/train-0.tar", "webdataset"),
        ("train-0.parquet", "parquet"),
        ("batches.meta", "cifar10"),
        ("ILSVRC2012_devkit_t12.tar.gz", "imagenet"),
    ):
        (tmp_path / name).touch()
        assert recognize(str(tmp_path)) == kind
    assert open_source(str(tmp_path), kind="webdataset").kind == "webdataset"


def test_files_in_the_folder_data_do_not_count_for_every_source(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "batches.meta").touch()
    assert recognize(str(tmp_path)) == "folders"
    (tmp_path / "data" / "train-0.parquet").touch()
    assert recognize(str(tmp_path)) == "parquet"


def test_an_option_that_a_source_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--class-names is for .*folders.*, not for cifar10: leave it out"):
        open_source(str(tmp_path), "names.txt", "cifar10")
    with pytest.raises(UserError, match="--kind is 'zip'; choose one of: imagenet"):
        open_source(str(tmp_path), kind="zip")


def test_every_registered_source_names_its_own_kind(tmp_path: Path) -> None:
    for kind, source in SOURCES.items():
        assert isinstance(source, SourceType) and source.open(str(tmp_path)).kind == kind
