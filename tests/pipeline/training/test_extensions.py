"""Claims about the seams: the module in the documentation adds one of almost everything from outside the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.errors import UserError
from pipeline.config import settings_io
from pipeline.runs import history, trained_model
from tests.helpers.runs import write_configuration

PAGE = Path(__file__).parents[3] / "docs" / "development" / "extending.md"
[MODULE] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_a_run_uses_what_a_module_outside_the_package_registers(textures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    changes = ["cluster.workers=0", "run.name=one", "training.epochs=2", "training.batch_size=120"]
    named = ["optimizer.kind=plain", "optimizer.schedule=half", "training.callbacks=[log]"]
    named += ["data.augmentations=[darken]"]
    file = write_configuration(tmp_path, textures, *changes, *named)
    environment = {**os.environ, "PHASECOLLAPSE_EXTENSIONS": "mine", "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    for command in (["train"], ["describe", "model.nonlinearity=square"]):
        words = [command[0], str(file), *command[1:]]
        program = [sys.executable, "-m", "pipeline.cli.main", *words]
        done = subprocess.run(program, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "square" in done.stdout
    run = tmp_path / "runs" / "one"
    first, second = history.read(run)
    assert first.metrics["learning_rate"] == second.metrics["learning_rate"] == 0.5 * 0.01
    assert second.metrics["validation/images"] == 1.0
    assert (run / "hooks.log").read_text(encoding="utf-8").splitlines() == [
        "step 1",
        "step 2",
        "evaluation 1",
        "checkpoint epoch-00001",
        "step 3",
        "step 4",
        "checkpoint epoch-00001-step-0000002",
        "evaluation 2",
        "checkpoint epoch-00002",
        "end",
    ]
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert evaluation["images"] == 70 and evaluation["registered"] == {"images": 1.0}
    trained = trained_model.load(run)  # in this process, which has not imported that module
    assert (trained.settings.optimizer.kind, trained.settings.training.callbacks) == ("plain", ("log",))
    with pytest.raises(UserError, match=r"'optimizer\.kind' is 'plain': must be 'sgd' or 'adamw'"):
        settings_io.load(file)


def test_an_unknown_name_is_refused_with_those_there_are(textures: Path, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, textures, "cluster.workers=0", "optimizer.kind=lion")
    command = [sys.executable, "-m", "pipeline.cli.main", "train", str(file), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    expected = (
        "setting 'optimizer.kind' is 'lion': must be 'sgd' or 'adamw', or what an installed package or a module in "
    )
    assert done.stderr.startswith(f"error: {file}: {expected}")
