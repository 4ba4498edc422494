"""What Ray Train, checkpoints and tracking cost: the same steps in a bare loop and as a run, in turn.

    python -m benchmarks.overhead configs/imagenette_64.yaml --data datasets/imagenette

The bare loop is what one would write in a notebook: the same network, optimizer and batches in a process of its own,
and nothing else. The run is `phasecollapse train` with a Ray cluster, one Ray Train worker, an MLflow store,
checkpoints and the history. Both have equally many threads and the same allocator, and go through the same epochs.

Once both have finished their first epoch, they take turns of some seconds: the other one, with all processes of its
cluster, is stopped meanwhile, so that the bare loop has a machine without Ray, and what the machine's neighbours do
hits both alike. A turn's seconds a step are those from step to step within it. Each pair of turns gives a ratio; the
confidence interval is Student's over the pairs. The last line is JSON:

    overhead_percent           by which a step of the run is slower than one of the bare loop
    confidence_interval        of it, 95 %
    whole_run_percent          the same for all from the end of the first epoch on, with evaluations and checkpoints
    background_percent         CPU time of all processes of the run but its worker, of the time of all cores
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from scipy import stats

from benchmarks.options import count
from pipeline import allocator, config, history, models
from pipeline.data import ImageStream
from pipeline.optim import build_optimizer, build_schedule
from pipeline.settings import Settings

WORKER = "ray::RayTrainWorker"


def bare(settings: Settings, folder: Path) -> None:
    """Trains and evaluates in a plain loop; notes when each step and epoch ended, as a run does."""
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
    steps: list[float] = []
    epochs: list[float] = []
    for epoch in range(1, training.epochs + 1):
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
            steps.append(time.time())
        network.eval()
        right = 0
        with torch.inference_mode():
            for batch in validation.epoch(epoch):
                right += int((network(batch.images).argmax(1) == batch.labels).sum())
        epochs.append(time.time())
        history.write_atomically(folder / "bare.json", json.dumps({"steps": steps, "epochs": epochs}))


class Side(NamedTuple):
    """One of the two that take turns."""

    processes: Callable[[], list[psutil.Process]]
    ended: Callable[[], list[float]]
    """When each of its epochs ended."""
    turns: list[tuple[float, float]]
    """When it was not stopped, once both have finished an epoch."""

    def send(self, number: signal.Signals) -> None:
        """Stops it, or lets it go on."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def active(self, start: float, end: float) -> float:
        """Seconds between two points in time in which it was not stopped."""
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in self.turns)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, and so on."""
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """CPU time of processes, but for the worker's."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if not process.cmdline()[0].startswith(WORKER):
                total += sum(process.cpu_times()[:2])
    return total


def seconds_of_a_step(steps: Sequence[float], epochs: Sequence[float], turn: tuple[float, float]) -> float | None:
    """Mean time from step to step of the same epoch and turn; None if there are too few.

    Args:
        steps, epochs: when each of them ended.
    """
    inside = [each for each in steps if turn[0] < each < turn[1]]
    spans = [(a, b) for a, b in itertools.pairwise(inside) if not any(a < end < b for end in epochs)]
    return statistics.fmean(b - a for a, b in spans) if len(spans) > 3 else None


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
    parser.add_argument("--epochs", type=count, default=4, help="of each; the first is not counted [%(default)s]")
    parser.add_argument("--turn", type=float, default=12.0, help="seconds of a turn [%(default)s]")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="of torch [all cores]")
    parser.add_argument("overrides", nargs="*", help="more settings, as section.field=value")
    chosen = parser.parse_args()
    if chosen.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is not counted")
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(compare(chosen, Path(name))))
    return 0


def compare(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Lets both train, in turn."""
    overrides = [
        f"data.path={chosen.data.absolute()}",
        f"run.storage={folder}",
        "run.name=run",
        f"training.epochs={chosen.epochs}",
        "cluster.workers=1",
        f"cluster.cpus_per_worker={chosen.threads}",
        "tracking.every_steps=1",  # more than a run has: it tells when each step ended
        *chosen.overrides,
    ]
    command = [sys.executable, "-m", "pipeline.cli", "train", str(chosen.config), *overrides]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    loop = multiprocessing.get_context("spawn").Process(
        target=bare, args=(config.load(chosen.config, overrides), folder)
    )
    run = Side(lambda: family(started.pid), lambda: [each.finished_at for each in history.read(folder / "run")], [])
    other = Side(lambda: family(loop.pid or 0), lambda: noted(folder)["epochs"], [])
    try:
        _until(lambda: len(run.ended()) > 0, started.poll)
        run.send(signal.SIGSTOP)
        loop.start()
        _until(lambda: len(other.ended()) > 0, lambda: loop.exitcode)
        other.send(signal.SIGSTOP)
        background, spent = 0.0, 0.0
        while len(run.ended()) < chosen.epochs or len(other.ended()) < chosen.epochs:
            for side in (run, other):
                before, begun = cpu_seconds(run.processes()), time.time()
                side.send(signal.SIGCONT)
                time.sleep(chosen.turn)
                side.send(signal.SIGSTOP)
                side.turns.append((begun, time.time()))
                if side is run and started.poll() is None and len(run.ended()) < chosen.epochs:
                    background += cpu_seconds(run.processes()) - before
                    spent += time.time() - begun
            print(f"pair {len(run.turns)}: epochs {len(run.ended())} and {len(other.ended())}", file=sys.stderr)
    finally:
        for side in (run, other):
            side.send(signal.SIGCONT)
        started.send_signal(signal.SIGTERM)
        started.wait()
        if loop.pid:
            loop.terminate()
            loop.join()
    steps = [each.recorded_at for each in history.read_steps(folder / "run")]
    pairs = [
        (
            seconds_of_a_step(steps, run.ended(), ours),
            seconds_of_a_step(noted(folder)["steps"], other.ended(), theirs),
        )
        for ours, theirs in zip(run.turns, other.turns, strict=True)
    ]
    overhead, interval = percent([ours / theirs for ours, theirs in pairs if ours and theirs])
    whole = [side.active(side.ended()[0], side.ended()[-1]) for side in (run, other)]
    return {
        "overhead_percent": overhead,
        "confidence_interval": interval,
        "whole_run_percent": round(100 * (whole[0] / whole[1] - 1), 2),
        "background_percent": round(100 * background / spent / len(os.sched_getaffinity(0)), 2),
        "seconds_of_a_step": round(statistics.median(theirs for _, theirs in pairs if theirs), 4),
        "pairs": sum(bool(ours and theirs) for ours, theirs in pairs),
        "epochs": chosen.epochs,
        "threads": chosen.threads,
    }


def noted(folder: Path) -> dict[str, list[float]]:
    """When steps and epochs of the bare loop ended."""
    file = folder / "bare.json"
    found: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {"steps": [], "epochs": []}
    return found


def _until(condition: Callable[[], bool], ended: Callable[[], object]) -> None:
    while not condition():
        if ended() is not None:
            raise SystemExit("a training ended before its first epoch did")
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
