"""A callback that holds a run after a step, so that what is done to it from outside comes at a known point.

Processes load this module where the variables of :meth:`Gate.variables` are set; runs name it in `training.callbacks`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.runtime.coordination import StepAction
from pipeline.training.callbacks import CALLBACKS, Callback, StepEnd
from tests.helpers.checkout import ROOT

OPTION = "training.callbacks=[gate]"
_FILE = "PHASECOLLAPSE_TEST_GATE"


@dataclass(frozen=True)
class Gate:
    """Where a run has to wait; open at first.

    Args:
        file: names the step, while the gate is closed.
    """

    file: Path

    def variables(self) -> dict[str, str]:
        """Variables of the environment with which a run's processes find the gate."""
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return {"PHASECOLLAPSE_EXTENSIONS": __name__, _FILE: str(self.file), "PYTHONPATH": path}

    def close(self, step: int) -> None:
        """Holds runs after this step, counted over all epochs, or any later one."""
        growing = self.file.with_suffix(".new")
        growing.write_text(str(step))
        growing.replace(self.file)

    def open(self) -> None:
        """Lets runs pass."""
        self.file.unlink()


class _Wait(Callback):
    """Waits after a step, on every rank and before it is saved, while the gate is closed there."""

    def on_step_end(self, event: StepEnd) -> StepAction:
        while event.number >= self._closed_from():
            time.sleep(0.02)
        return super().on_step_end(event)

    def _closed_from(self) -> float:
        try:
            return int(Path(os.environ[_FILE]).read_text())
        except FileNotFoundError:
            return float("inf")


CALLBACKS.register("gate", lambda spec, context, state: _Wait())
