"""Whether bfloat16 autocast trains as float32 does: their loss curves, beside those of other seeds.

    python -m benchmarks.precision datasets/imagenette docs/results/precision --storage runs/precision

Trains one network on photographs in both precisions from each of several seeds, and compares the curves of the loss on
the training images: how far bfloat16 is from float32 of the same seed, and how far float32 is from float32 of another
seed, as means over epochs and pairs. An interrupted run is resumed, and a finished one is not trained again.
Writes OUTPUT.json and OUTPUT.png; the last line is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from pipeline.config import settings_io
from pipeline.launch import launcher
from pipeline.runs import history

CONFIG = Path(__file__).parent.parent / "configs" / "imagenette_64.yaml"
PRECISIONS = ("float32", "bfloat16")
MEASURES = ("train/loss", "validation/loss", "validation/top1")

Curves = dict[tuple[str, int], dict[str, list[float]]]
"""Each measure by epoch, for each precision and seed."""


def train(data: Path, storage: Path, precision: str, seed: int, epochs: int, threads: int) -> dict[str, list[float]]:
    """One run in this process; its curves."""
    changes = {
        "data.path": data,
        "run.storage": storage,
        "run.name": f"{precision}-{seed}",
        "training.precision": precision,
        "training.seed": seed,
        "training.epochs": epochs,
        "cluster.workers": 0,
        "cluster.cpus_per_worker": threads,
        "data.decode_threads": threads,
    }
    settings = settings_io.load(CONFIG, [f"{field}={value}" for field, value in changes.items()])
    records = history.read(launcher.train(settings).folder)
    return {measure: [record.metrics[measure] for record in records] for measure in MEASURES}


def distance(curve: list[float], other: list[float]) -> float:
    """Mean over epochs of the absolute difference."""
    return statistics.fmean(abs(a - b) for a, b in zip(curve, other, strict=True))


def compare(curves: Curves, seeds: int, measure: str) -> dict[str, float]:
    """Distances of curves between precisions and seeds, and of their means after the last epoch."""
    full, half = ([curves[precision, seed][measure] for seed in range(seeds)] for precision in PRECISIONS)
    ends = [statistics.fmean(curve[-1] for curve in group) for group in (full, half)]
    return {
        "between_precisions": round(statistics.fmean(map(distance, full, half)), 4),
        "between_seeds": round(statistics.fmean(distance(*pair) for pair in itertools.combinations(full, 2)), 4),
        "float32_at_the_end": round(ends[0], 4),
        "bfloat16_at_the_end": round(ends[1], 4),
    }


def draw(curves: Curves, path: Path) -> None:
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(12, 4), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        for (precision, seed), run in curves.items():
            axis.plot(
                range(1, 1 + len(run[measure])),
                run[measure],
                color="C0" if precision == "float32" else "C1",
                linestyle=("-", "--", ":", "-.")[seed % 4],
                label=f"{precision}, seed {seed}",
            )
        axis.set_title(measure)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of a prepared data set of ten classes")
    parser.add_argument("output", type=Path, help="path without suffix, such as docs/results/precision")
    parser.add_argument("--storage", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=3, help="from 2 on [%(default)s]")
    parser.add_argument("--epochs", type=int, default=4, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the decoder [%(default)s]")
    chosen = parser.parse_args()
    if chosen.seeds < 2:
        parser.error("--seeds must be at least 2: the unit is the distance between seeds")

    arguments = (chosen.epochs, chosen.threads)
    curves = {
        (precision, seed): train(chosen.data, chosen.storage, precision, seed, *arguments)
        for seed in range(chosen.seeds)
        for precision in PRECISIONS
    }
    result = {measure: compare(curves, chosen.seeds, measure) for measure in MEASURES}
    by_run = {f"{precision}, seed {seed}": run for (precision, seed), run in curves.items()}
    chosen.output.with_suffix(".json").write_text(json.dumps(result | {"curves": by_run}, indent=1) + "\n")
    draw(curves, chosen.output.with_suffix(".png"))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
