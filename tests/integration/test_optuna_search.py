"""A search that asks Optuna for its trials, and knows an earlier one: interrupted in its first trial, then resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.format.manifest import load_manifest
from tests.helpers.gate import Gate
from tests.integration.test_trials_in_process import EPOCHS, STEPS, start, wait_for, write_search
from tuning import config, search_folder, searchers
from tuning.search_folder import Record, record_of
from tuning.space.candidate import of_point

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPACE = {"depth": [1, 2], "width": {"log_integer": [2, 8]}, "optimizer.learning_rate": {"log_uniform": [0.001, 0.3]}}
TRIALS, KNOWN = 4, 12


def test_a_search_by_optuna_resumes_with_the_points_that_it_would_have_had(textures: Path, tmp_path: Path) -> None:
    gate, data = Gate(tmp_path / "gate"), load_manifest(textures)
    common: dict[str, Any] = {"searcher": "optuna", "trials": TRIALS, "space": SPACE, "scheduler": "none"}
    old = config.load(write_search(tmp_path / "old.yaml", textures, **{**common, "name": "old", "trials": KNOWN}))
    with search_folder.claim(old, data) as folder:
        folder.begin()
        for number in range(KNOWN):  # more than Optuna draws at random
            point = {"depth": 1 + number % 2, "width": 2 + number % 7, "optimizer.learning_rate": 0.01 * (1 + number)}
            one = of_point(point, old, "search.space")
            folder.update(one.name, record_of(one, Record(status="completed", errors={EPOCHS: 0.9 - 0.05 * number})))

    first = [{"depth": 1, "width": 2, "optimizer.learning_rate": 0.1}]
    file = write_search(tmp_path / "new.yaml", textures, **common, warm_start=["old"], initial_points=first)
    trials = tmp_path / "runs" / "tiny" / "trials.json"
    gate.close(STEPS + 4)  # in the second epoch
    search = start(file, gate)
    wait_for(lambda: trials.exists() and json.loads(trials.read_text())["2_learning_rate-0.1"]["errors"], search)
    search.send_signal(signal.SIGINT)
    output, _ = search.communicate(timeout=300)
    assert search.returncode == 130, output
    gate.open()
    search = start(file, gate)
    output, _ = search.communicate(timeout=300)
    assert search.returncode == 0 and "Traceback" not in output, output
    assert "2_learning_rate-0.1: resumed after epoch 1" in output

    records = {name: Record.model_validate(one) for name, one in json.loads(trials.read_text()).items()}
    assert [one.status for one in records.values()] == ["completed"] * TRIALS
    asker = searchers.choose(config.load(file), data).asker
    assert asker is not None and len(asker.warm) == KNOWN
    names = list(records)
    for number in range(1, TRIALS):  # the points follow from the results before them
        before = {name: records[name] for name in names[:number]}
        proposed = asker.ask(before, {})
        assert proposed is not None and proposed.name == names[number]
    tracked = yaml.safe_load((trials.parent / names[-1] / "run.yaml").read_text().split("\n---")[0])
    assert tracked["settings"]["model"]["widths"] == records[names[-1]].point["widths"]
