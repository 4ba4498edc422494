"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_prep.common.parallel import ThreadExecutor
from data_prep.prepare.dataset_writer import prepare
from data_prep.prepare.spec import PrepareSpec
from data_prep.sources.textures import Textures
from tests.helpers.ray_cluster import EAGER


def pytest_configure() -> None:
    """What tests start can be interrupted, though a shell's background job ignores SIGINT and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(EAGER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The module that takes longest comes first: of two processes, none waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_search.py")


@pytest.fixture
def double() -> Iterator[None]:
    """Networks that a test makes, and their inputs, are double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images (`data/`) and golden vectors (`golden/`), which the repository does not hold."""
    folder = os.environ.get("PHASECOLLAPSE_SHARED")
    if not folder:
        pytest.skip("set PHASECOLLAPSE_SHARED to the folder that holds data/ and golden/ to run this test")
    return Path(folder)


@pytest.fixture(scope="session")
def photographs(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with imagenet-sample/train/CLASS/*: 58 ImageNet photographs as they are."""
    folder = tmp_path_factory.mktemp("photographs")
    with tarfile.open(shared / "data" / "imagenet-sample.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def textures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small prepared data set of textures, in several shards: 10 classes, 240 training and 70 validation images."""
    folder = tmp_path_factory.mktemp("prepared") / "textures"
    source = Textures(seed=0, train_per_class=24, validation_per_class=7)
    prepare(source, folder, PrepareSpec.of(source, shard_samples=100), ThreadExecutor(1))
    return folder
