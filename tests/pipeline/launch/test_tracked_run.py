"""Claims about what the tracking store is to have of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.launch.tracked_run import provenance
from tests.helpers.tracked import write_run


def test_a_trial_has_the_command_of_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/ray/default_worker.py", "--node=1"])
    search = write_run(tmp_path / "search", "sqlite:///x.db", tags={"command": "phasecollapse tune a.yaml", "b": "c"})
    assert provenance()["command"] == "default_worker.py --node=1"
    assert provenance(search) == {**provenance(), "command": "phasecollapse tune a.yaml"}
