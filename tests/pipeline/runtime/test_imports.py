"""Claims about imports that take seconds."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from pipeline.runtime.imports import quick_imports


@pytest.fixture
def thawed() -> Iterator[None]:
    """Leaves nothing frozen in the process that runs the tests."""
    yield
    gc.unfreeze()


def test_the_collector_leaves_alone_what_is_imported(thawed: None) -> None:
    gc.unfreeze()
    with quick_imports():
        assert not gc.isenabled()
        imported = {"module": [object()]}
    assert gc.isenabled()
    assert all(each is not imported for each in gc.get_objects())


def test_the_collector_comes_back_after_an_import_that_fails(thawed: None) -> None:
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()
