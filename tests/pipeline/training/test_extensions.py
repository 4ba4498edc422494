"""Claims about the trainer's seams: a module outside the package adds an optimizer, schedule, metric and callback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.errors import UserError
from pipeline.config import settings_io
from pipeline.runs import history, trained_model
from tests.helpers.runs import write_configuration

MODULE = """
import torch
from pathlib import Path
from pipeline.metrics.epoch import METRICS
from pipeline.training.callbacks import CALLBACKS, Callback
from pipeline.training.optimizers import OPTIMIZERS, OptimizerKind
from pipeline.training.schedules import SCHEDULES

OPTIMIZERS.register("plain", OptimizerKind(lambda groups, s: torch.optim.SGD(groups, lr=s.learning_rate), 0))
SCHEDULES.register("half", lambda step, steps, warmup, steps_per_epoch, settings: 0.5)
METRICS.register("images", lambda logits, labels: torch.ones_like(labels).sum())


class Log(Callback):
    def __init__(self, spec, context, state):
        self.file = spec.folder.path / "hooks.log"

    def write(self, hook):
        with self.file.open("a") as file:
            file.write(hook + "\\n")

    def on_step_end(self, event):
        self.write(f"step {event.number}")
        return super().on_step_end(event)

    def on_evaluation_end(self, event):
        self.write(f"evaluation {event.epoch}")

    def on_checkpoint(self, checkpoint):
        self.write(f"checkpoint {checkpoint.name}")

    def on_fit_end(self):
        self.write("end")


CALLBACKS.register("log", Log)
"""


@pytest.mark.slow
def test_a_run_uses_what_a_module_outside_the_package_registers(textures: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf-8")
    changes = ["cluster.workers=0", "run.name=one", "training.epochs=2", "training.batch_size=120"]
    named = ["optimizer.kind=plain", "optimizer.schedule=half", "training.callbacks=[log]"]
    file = write_configuration(tmp_path, textures, *changes, *named)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.main", "train", str(file)],
        env={**os.environ, "PHASECOLLAPSE_EXTENSIONS": "mine", "PYTHONPATH": f"{tmp_path}:{Path.cwd()}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
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
