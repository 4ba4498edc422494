"""Files that are damaged in any way are handled; `python -m tests.fuzz` makes as many as there is time for."""

from __future__ import annotations

import math

from tests.fuzz.__main__ import fuzz


def test_damaged_files_of_all_kinds_are_handled() -> None:
    assert fuzz(seed=1, cases=4000, seconds=math.inf) == 4000  # a busy machine under sanitizers is slow
