"""What the journal of a run costs its steps.

    python -m benchmarks.tracking configs/imagenette_64.yaml --data datasets/imagenette tracking.every_steps=10

Trains an epoch in this process, with a record after every `tracking.every_steps` steps, and adds up the time that the
step path spends on records and the CPU time of the thread that writes and flushes them, as if the latter always took
the step's core. The last line is JSON:

    journal_percent            of the time of a training step: recording it
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config import settings_io
from pipeline.launch import launcher
from pipeline.runs import history
from pipeline.runs.history import StepLog
from pipeline.training.callbacks import StepCurves


def timed(owner: type, name: str, clock: Callable[[], float]) -> list[float]:
    """Makes a method add the time of each call to the list that is returned."""
    method, times = getattr(owner, name), []

    def measured(*arguments: Any) -> Any:
        began = clock()
        try:
            return method(*arguments)
        finally:
            times.append(clock() - began)

    setattr(owner, name, measured)
    return times


def journal(config: Path, data: Path, overrides: list[str]) -> dict[str, float]:
    """The cost of the journal while an epoch is trained."""
    on_step = timed(StepCurves, "on_step_end", time.perf_counter)
    writing = timed(StepLog, "flush", time.thread_time)
    with tempfile.TemporaryDirectory() as folder:
        changes = [
            f"data.path={data}",
            f"run.storage={folder}",
            "run.name=run",
            "training.epochs=1",
            "cluster.workers=0",
        ]
        run = launcher.train(settings_io.load(config, [*changes, *overrides])).folder
        (epoch,) = history.read(run)
    seconds = epoch.metrics["train/seconds"]
    return {
        "steps": len(on_step),
        "step_seconds": seconds / len(on_step),
        "journal_percent": 100 * (sum(on_step) + sum(writing)) / seconds,
    }


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="settings of the run that is trained")
    parser.add_argument("overrides", nargs="*", help="SECTION.FIELD=VALUE")
    parser.add_argument("--data", type=Path, required=True, help="folder of its data set")
    options = parser.parse_intermixed_args()
    print(json.dumps(journal(options.config, options.data, options.overrides)))


if __name__ == "__main__":
    main()
