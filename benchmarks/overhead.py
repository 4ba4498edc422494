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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from scipy import stats

from benchmarks.options import count
from pipeline import allocator, config, history, models
from pipeline.data import ImageStream
from pipeline.optim import build_optimizer, build_schedule
from pipeline.settings import Settings

WORKER = "ray::RayTrainWorker"
SETTLING = 2.0
"""Seconds in which a cluster works off what it missed while it was stopped; they do not count."""


def bare(settings: Settings, folder: Path) -> None:
    """Trains and evaluates in a plain loop; notes when each step and epoch ended, as a run does."""
    allocator.keep_freed_memory()
    data, training = settings.data, settings.training
    torch.set_num_threads(settings.cluster.threads)
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


@dataclass
class Side:
    """One of the two that take turns, with all processes that it starts."""

    name: str
    pid: int
    exit_status: Callable[[], int | None]
    """None while it runs."""
    steps: Callable[[], list[float]]
    """When each of its steps ended."""
    epochs: Callable[[], list[float]]
    """When each of its epochs ended."""
    turns: list[tuple[float, float]] = field(default_factory=list)
    """From when to when it was not stopped, after its first epoch."""
    background: list[float] = field(default_factory=list)
    """CPU seconds of all its processes but the worker, a second of each turn."""

    def processes(self) -> list[psutil.Process]:
        """The process that was started, and all that it started, and so on."""
        try:
            return [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def send(self, number: signal.Signals) -> None:
        """Stops it, or lets it go on."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def warm_up(self) -> None:
        """Lets it come to the end of its first epoch, and stops it there."""
        while not self.epochs():
            if self.exit_status() is not None:
                raise SystemExit(f"the {self.name} ended before its first epoch did")
            time.sleep(0.1)
        self.send(signal.SIGSTOP)

    def turn(self, seconds: float) -> None:
        """Lets it work for so long."""
        before, begun = cpu_seconds(self.processes()), time.time()
        self.send(signal.SIGCONT)
        time.sleep(seconds)
        self.send(signal.SIGSTOP)
        self.turns.append((begun, time.time()))
        if self.exit_status() is None:
            self.background.append((cpu_seconds(self.processes()) - before) / (time.time() - begun))

    def seconds_of_steps(self) -> list[float | None]:
        """Mean seconds of a step in each turn, see `seconds_of_a_step`."""
        steps, epochs = self.steps(), self.epochs()
        return [seconds_of_a_step(steps, epochs, turn) for turn in self.turns]

    def whole(self) -> float:
        """Seconds from the end of the first epoch to that of the last in which it was not stopped."""
        start, end = self.epochs()[0], self.epochs()[-1]
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in self.turns)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """CPU time of processes, but for the worker's."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if not process.cmdline()[0].startswith(WORKER):
                total += sum(process.cpu_times()[:2])
    return total


def seconds_of_a_step(steps: Sequence[float], epochs: Sequence[float], turn: tuple[float, float]) -> float | None:
    """Mean time from step to step of the same epoch and turn, a while after its start; None if there are too few.

    Args:
        steps, epochs: when each of them ended.
    """
    inside = [each for each in steps if turn[0] + SETTLING < each < turn[1]]
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
    parser.add_argument("--turn", type=float, default=15.0, help="seconds of a turn [%(default)s]")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="of torch [all cores]")
    parser.add_argument("overrides", nargs="*", help="more settings, as section.field=value")
    chosen = parser.parse_args()
    if chosen.epochs < 2:
        parser.error("--epochs must be at least 2: the first one is not counted")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that nothing is left behind
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(compare(chosen, Path(name))))
    return 0


def compare(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Lets both train, in turn, and says how they differ."""
    with both(chosen, folder) as (run, loop):
        while min(len(run.epochs()), len(loop.epochs())) < chosen.epochs:
            for side in (run, loop):
                side.turn(chosen.turn)
            print(f"pair {len(run.turns)}: epochs {len(run.epochs())} and {len(loop.epochs())}", file=sys.stderr)
        pairs = [(a, b) for a, b in zip(run.seconds_of_steps(), loop.seconds_of_steps(), strict=True) if a and b]
        overhead, interval = percent([a / b for a, b in pairs])
        return {
            "overhead_percent": overhead,
            "confidence_interval": interval,
            "whole_run_percent": round(100 * (run.whole() / loop.whole() - 1), 2),
            "background_percent": round(100 * statistics.median(run.background) / len(os.sched_getaffinity(0)), 2),
            "seconds_of_a_step": round(statistics.median(b for _, b in pairs), 4),
            "pairs": len(pairs),
            "epochs": chosen.epochs,
            "threads": chosen.threads,
            "cores": len(os.sched_getaffinity(0)),
        }


@contextmanager
def both(chosen: argparse.Namespace, folder: Path) -> Iterator[tuple[Side, Side]]:
    """The run and the bare loop, each stopped behind its first epoch; what is left of them ends with the body."""
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
    settings = config.load(chosen.config, overrides)
    with ExitStack() as ending:
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        run = Side(
            "run",
            started.pid,
            started.poll,
            lambda: [each.recorded_at for each in history.read_steps(folder / "run")],
            lambda: [each.finished_at for each in history.read(folder / "run")],
        )
        ending.callback(started.wait)
        ending.callback(started.send_signal, signal.SIGTERM)
        ending.callback(run.send, signal.SIGCONT)
        run.warm_up()
        process = multiprocessing.get_context("spawn").Process(target=bare, args=(settings, folder))
        process.start()
        ending.callback(process.join)
        ending.callback(process.kill)
        assert process.pid
        loop = Side(
            "bare loop",
            process.pid,
            lambda: process.exitcode,
            lambda: noted(folder)["steps"],
            lambda: noted(folder)["epochs"],
        )
        loop.warm_up()
        yield run, loop


def noted(folder: Path) -> dict[str, list[float]]:
    """When steps and epochs of the bare loop ended."""
    file = folder / "bare.json"
    found: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {"steps": [], "epochs": []}
    return found


if __name__ == "__main__":
    sys.exit(main())
