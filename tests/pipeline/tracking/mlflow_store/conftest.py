from __future__ import annotations

import pytest

from pipeline.tracking.mlflow_store.store import Store, default_store


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An SQLite store: its tables take seconds to make, so the tests share it."""
    return default_store(tmp_path_factory.mktemp("runs"))
