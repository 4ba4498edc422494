"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images (`data/`) and golden vectors (`golden/`), which the repository does not hold."""
    folder = os.environ.get("PHASECOLLAPSE_SHARED")
    if not folder:
        pytest.skip("set PHASECOLLAPSE_SHARED to the folder that holds data/ and golden/ to run this test")
    return Path(folder)
