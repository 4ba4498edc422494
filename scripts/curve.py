"""A run's curve for `docs/results`: ``python scripts/curve.py RUN_FOLDER OUTPUT`` writes OUTPUT.json and OUTPUT.png.

The JSON holds the run's settings, on what it was computed, and every epoch's metrics and seconds, but no folder or host
name, which mean nothing elsewhere. The picture shows accuracy and loss by epoch.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml

from pipeline import history
from pipeline.history import EpochRecord


def describe(folder: Path, records: list[EpochRecord]) -> dict[str, Any]:
    """What a reader needs to judge the run, as plain values."""
    times = [record.finished_at for record in records]
    run = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    run["settings"]["data"]["path"] = Path(run["settings"]["data"]["path"]).name
    del run["settings"]["run"]
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    del environment["hardware.host"]
    return {
        "run": run,
        "environment": environment,
        "seconds_between_first_and_last_epoch": round(times[-1] - times[0], 1),
        "epochs": [asdict(record) for record in records],
    }


def draw(records: list[EpochRecord], path: Path) -> None:
    """Accuracy and loss, one point an epoch."""
    epochs = [record.epoch for record in records]
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axes, ending in ((accuracy, "top1"), (loss, "loss")):
        for name in sorted(key for key in records[-1].metrics if key.endswith(ending)):
            axes.plot(epochs, [record.metrics[name] for record in records], label=name, marker=".")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    accuracy.set_title("accuracy (top-1, fraction)")
    loss.set_title("loss (training: with label smoothing)")
    loss.set_yscale("log")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, with its history.json")
    parser.add_argument("output", type=Path, help="path without suffix, such as docs/results/imagenette_64")
    arguments = parser.parse_args()
    records = history.read(arguments.run)
    if not records:
        parser.error(f"{arguments.run} has no history.json with a finished epoch")
    described = describe(arguments.run, records)
    arguments.output.with_suffix(".json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    draw(records, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
