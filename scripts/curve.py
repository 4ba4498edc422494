"""Curves for `docs/results`: ``python scripts/curve.py docs/results/NAME RUN_FOLDER...`` writes NAME.json and NAME.png.
A NAME.json that was written before may stand for the folders of its runs.

The JSON holds, for each run, its settings, on what it was computed, every epoch's metrics, and what its final
evaluation came to; but no folder or host name, which mean nothing elsewhere. The picture shows accuracy and loss by
epoch, training dashed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import yaml

from pipeline.metrics import report
from pipeline.runs import history, paths


def describe(folder: Path) -> dict[str, Any]:
    """Settings, environment and curves of a run, as plain values."""
    run = yaml.safe_load((folder / paths.IDENTITY).read_text(encoding="utf-8"))
    run["settings"]["data"]["path"] = Path(run["settings"]["data"]["path"]).name
    del run["settings"]["run"]
    environment = json.loads((folder / paths.ENVIRONMENT).read_text(encoding="utf-8"))
    del environment["hardware.host"]
    records = history.read(folder)
    described = {
        "name": folder.name,
        "run": run,
        "environment": environment,
        "training_seconds": round(sum(record.metrics["train/seconds"] for record in records), 1),
        "epochs": [asdict(record) for record in records],
    }
    final = folder / paths.REPORT / report.EVERYTHING
    if final.is_file():
        evaluation = json.loads(final.read_text(encoding="utf-8"))
        described["evaluation"] = {
            name: evaluation[name] for name in ("top1", "top5", "loss", "calibration_error", "images")
        }
    return described


def read(path: Path) -> list[dict[str, Any]]:
    """Descriptions of the run in a folder, or of all in a file of this program.

    Raises:
        ValueError: there is no finished epoch.
    """
    if path.is_file():
        earlier: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return earlier
    if not history.read(path):
        raise ValueError(f"{path} has no {paths.HISTORY} with a finished epoch")
    return [describe(path)]


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy and loss, one point an epoch; a color for each run."""
    figure, (accuracy, loss) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for color, run in enumerate(runs):
        epochs = run["epochs"]
        for axes, ending in ((accuracy, "top1"), (loss, "loss")):
            for name in sorted(key for key in epochs[-1]["metrics"] if key.endswith(ending)):
                axes.plot(
                    [each["epoch"] for each in epochs],
                    [each["metrics"][name] for each in epochs],
                    label=name if len(runs) == 1 else f"{run['run']['settings']['model']['family']}: {name}",
                    color=f"C{color}",
                    linestyle="--" if name.startswith("train/") else "-",
                    marker=".",
                )
    for axes in (accuracy, loss):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    accuracy.set_title("accuracy (top-1, fraction)")
    loss.set_title("loss (training: with label smoothing)")
    loss.set_yscale("log")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="path without suffix, such as docs/results/imagenette_64")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs, with a finished epoch each, or NAME.json")
    chosen = parser.parse_args()
    try:
        runs = [run for path in chosen.runs for run in read(path)]
    except ValueError as error:
        parser.error(str(error))
    chosen.output.with_suffix(".json").write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    draw(runs, chosen.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
