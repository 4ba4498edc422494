"""What Ray Train, checkpoints and tracking cost: the same steps in a bare loop and as a run, in turn.

    python -m benchmarks.overhead configs/imagenette_64.yaml --data datasets/imagenette

The bare loop is what one would write in a notebook: the same network, optimizer and batches in a process of its own,
and nothing else. The run has a Ray cluster with a Ray Train worker, an MLflow store, checkpoints and the history; the
cluster is there for the run alone. Both have one worker, equally many threads and the same allocator. An epoch's time
is that of its training; the first one of each is not counted. Each round gives a ratio; the confidence interval is
Student's over the rounds. The last line is JSON:

    overhead_percent           by which a step of the run is slower than one of the bare loop
    confidence_interval        of it, 95 %
    whole_run_percent          the same for all from the end of the first epoch on, with evaluations and checkpoints
    whole_run_interval         of it, 95 %
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from scipy import stats

from benchmarks.options import count
from pipeline import allocator, config, history, launch, models
from pipeline.data import ImageStream
from pipeline.optim import build_optimizer, build_schedule
from pipeline.settings import Settings


class Times(NamedTuple):
    """Seconds that a number of epochs took, the first one not counted."""

    training: float
    whole: float
    """Evaluation and whatever else is between epochs included."""


def bare(settings: Settings) -> Times:
    """Trains and evaluates in a plain loop in this process."""
    allocator.keep_freed_memory()
    data, training = settings.data, settings.training
    torch.set_num_threads(settings.cluster.cpus_per_worker)
    images, validation = (
        ImageStream(Path(data.path), data, subset, batch_size=training.batch_size, seed=training.seed)
        for subset in ("train", "validation")
    )
    network = models.build(settings.model, len(images.classes), data.image_size, training.seed)
    optimizer = build_optimizer(network, settings.optimizer)
    schedule = build_schedule(optimizer, settings.optimizer, training.epochs, images.steps())
    spent, first_ended = 0.0, 0.0
    for epoch in range(1, training.epochs + 1):
        started = time.perf_counter()
        network.train()
        for batch in images.epoch(epoch):
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bfloat16"):
                logits = network(batch.images)
            loss = torch.nn.functional.cross_entropy(
                logits.float(), batch.labels, label_smoothing=training.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        spent += time.perf_counter() - started if epoch > 1 else 0.0
        network.eval()
        right = 0
        with torch.inference_mode():
            for batch in validation.epoch(epoch):
                right += int((network(batch.images).argmax(1) == batch.labels).sum())
        first_ended = first_ended or time.perf_counter()
    return Times(spent, time.perf_counter() - first_ended)


def tracked(settings: Settings) -> Times:
    """The same as a run on Ray Train."""
    records = history.read(launch.train(settings, progress=False).folder)
    whole = records[-1].finished_at - records[0].finished_at
    return Times(sum(record.metrics["train/seconds"] for record in records[1:]), whole)


def percent(ratios: Sequence[float]) -> tuple[float, list[float]]:
    """Mean of ratios as percent above one, and its 95 % confidence interval."""
    mean = statistics.fmean(ratios)
    half = 0.0
    if len(ratios) > 1:
        half = float(stats.t.ppf(0.975, len(ratios) - 1)) * statistics.stdev(ratios) / len(ratios) ** 0.5
    return round(100 * (mean - 1), 2), [round(100 * (mean - half - 1), 2), round(100 * (mean + half - 1), 2)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration of a run")
    parser.add_argument("--data", type=Path, required=True, help="folder of a prepared data set")
    parser.add_argument("--rounds", type=count, default=5, help="times that each trains [%(default)s]")
    parser.add_argument("--epochs", type=count, default=4, help="of each [%(default)s]")
    parser.add_argument("--threads", type=count, default=2, help="of torch [%(default)s]")
    parser.add_argument("overrides", nargs="*", help="more settings, as section.field=value")
    chosen = parser.parse_args()
    if chosen.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is not counted")
    ratios: dict[str, list[float]] = {"training": [], "whole": []}
    with tempfile.TemporaryDirectory() as storage:
        for number in range(chosen.rounds):
            changes = {
                "data.path": chosen.data,
                "run.storage": storage,
                "run.name": f"round-{number}",
                "training.epochs": chosen.epochs,
                "cluster.workers": 1,
                "cluster.cpus_per_worker": chosen.threads,
            }
            settings = config.load(
                chosen.config, [*(f"{name}={value}" for name, value in changes.items()), *chosen.overrides]
            )
            run = tracked(settings)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                loop = process.submit(bare, settings).result()
            for name in ratios:
                ratios[name].append(getattr(run, name) / getattr(loop, name))
            print(
                f"round {number + 1}: run {run.training:.1f} s of training, {run.whole:.1f} s in all; "
                f"bare loop {loop.training:.1f} s, {loop.whole:.1f} s",
                flush=True,
            )
    overhead, interval = percent(ratios["training"])
    whole, whole_interval = percent(ratios["whole"])
    result = {
        "overhead_percent": overhead,
        "confidence_interval": interval,
        "whole_run_percent": whole,
        "whole_run_interval": whole_interval,
        "rounds": chosen.rounds,
        "epochs": chosen.epochs,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
