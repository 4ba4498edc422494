"""What Ray Train, checkpoints and tracking cost: the same steps in a bare loop and as a run, in turn.

    python -m benchmarks.overhead configs/imagenette_64.yaml --data datasets/imagenette training.batch_size=16

The bare loop is what one would write in a notebook: the same network, optimizer and batches in a process of its own,
and nothing else. The run is `phasecollapse train` with a Ray cluster, one Ray Train worker, an MLflow store,
checkpoints and the history. Both have equally many threads, on the same cores, and the same allocator.

Once both have finished their first epoch, they take turns of a few steps; the other one is stopped meanwhile.
Short turns alone help, as what the machine's neighbours do changes from second to second. Each pair of turns gives a
ratio; the mean is that of its logarithm, and the confidence interval is Student's over the pairs.

With fewer threads than cores, the computing threads have cores of their own, and the other cores are left to everything
else: to the processes that a cluster runs beside its worker, which continue during the bare loop's turns, and to other
threads of worker and bare loop. Where all cores compute, the whole cluster is stopped in the bare loop's turns, and
catches up on what it missed in the first steps of the next one, which do not count. The last line is JSON:

    overhead_percent           by which a step of the run is slower than one of the bare loop
    confidence_interval        of it, 95 %
    whole_run_percent          the same for all from the end of the first epoch on, with evaluations and checkpoints
    background_percent         CPU time that a run takes besides, of one core's time: that of its other processes, and
                               of those threads of its worker that do not compute, less such threads of the bare loop
"""

from __future__ import annotations

import argparse
import json
import math
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
from functools import partial
from pathlib import Path

import psutil
import torch
from scipy import stats

from benchmarks.options import count
from pipeline import models
from pipeline.config import settings_io
from pipeline.config.schema import Settings
from pipeline.runs import history, paths
from pipeline.runtime import malloc
from pipeline.training.dataloader import ImageStream
from pipeline.training.optimizers import build_optimizer
from pipeline.training.schedules import build_schedule

WORKER = "ray::RayTrainWorker"
SETTLING = 3
"""Steps that are not timed after a pause: the cluster makes up for what it missed."""
STEPS, EPOCHS = "steps", "epochs"
"""What the bare loop writes: a line for each."""


def bare(settings: Settings, folder: Path) -> None:
    """Trains and evaluates in a plain loop until it is killed; notes that a step or epoch has ended."""
    malloc.keep_freed_memory()
    data, training = settings.data, settings.training
    torch.set_num_threads(settings.cluster.threads)
    images, validation = (
        ImageStream(Path(data.path), data, subset, batch_size=training.batch_size, seed=training.seed)
        for subset in ("train", "validation")
    )
    network = models.build(settings.model, len(images.classes), data.image_size, training.seed)
    optimizer = build_optimizer(network, settings.optimizer)
    schedule = build_schedule(optimizer, settings.optimizer, training.epochs, images.steps())
    with (folder / STEPS).open("wb", buffering=0) as steps, (folder / EPOCHS).open("w", buffering=1) as epochs:
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
                steps.write(b"\n")
            network.eval()
            right = 0
            with torch.inference_mode():
                for batch in validation.epoch(epoch):
                    right += int((network(batch.images).argmax(1) == batch.labels).sum())
            epochs.write(f"{time.time()}\n")


class Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, file: Path) -> None:
        self._file, self._read, self._lines = file, 0, 0

    def count(self) -> int:
        """Number of lines so far."""
        if self._file.exists() and self._file.stat().st_size > self._read:
            with self._file.open("rb") as file:
                file.seek(self._read)
                new = file.read()
            self._read += len(new)
            self._lines += new.count(b"\n")
        return self._lines


@dataclass
class Side:
    """One of the two that are compared: the run or the bare loop, with all its processes."""

    name: str
    process: psutil.Process
    """The process that computes."""
    others: list[psutil.Process]
    steps: Lines
    epochs: Callable[[], list[float]]
    """Times at which its epochs ended."""
    epoch_steps: int
    alone: bool
    """Whether its other processes have cores of their own and are never paused."""
    computing: list[int] = field(default_factory=list)
    """Ids of the threads that compute."""
    turns: list[tuple[float, float]] = field(default_factory=list)
    """Intervals (start, end) in which it was not paused, after its first epoch."""

    def send(self, number: signal.Signals) -> None:
        """Pauses its processes, or lets them continue."""
        for process in [self.process, *([] if self.alone else self.others)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def pin(self, threads: int, own: set[int], others: set[int]) -> None:
        """Gives the threads that compute, which are the busiest, cores of their own, and all others the other cores.

        Threads that come later, with an epoch's batches, are where the thread is that starts them.
        """
        by_time = sorted(self.process.threads(), key=lambda thread: -thread.user_time - thread.system_time)
        self.computing = [thread.id for thread in by_time[:threads]]
        for thread in by_time:
            with suppress(ProcessLookupError):
                os.sched_setaffinity(thread.id, own if thread.id in self.computing else others)
        for each in self.others:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                for thread in each.threads():
                    os.sched_setaffinity(thread.id, others)

    def spent(self) -> tuple[float, float]:
        """CPU seconds so far: of its threads that do not compute, and of its other processes."""
        threads = self.process.threads()
        computing = sum(one.user_time + one.system_time for one in threads if one.id in self.computing)
        return cpu_seconds([self.process]) - computing, cpu_seconds(self.others)

    def wait(self, step: int) -> float:
        """Waits until a number of steps is finished; the time at which it was."""
        while self.steps.count() < step:
            check_at_work(self.process, self.name)
            time.sleep(0.001)
        return time.time()

    def turn(self, steps: int) -> float | None:
        """Seconds per step over the next steps; None if an evaluation or a checkpoint fell between them."""
        before = self.steps.count()
        settling = 0 if self.alone else SETTLING
        begun = time.time()
        self.send(signal.SIGCONT)
        settled = self.wait(before + settling) if settling else begun
        end = self.wait(before + settling + steps)
        self.send(signal.SIGSTOP)
        self.turns.append((begun, end))
        return (end - settled) / steps if self.within_an_epoch(before, settling + steps) else None

    def within_an_epoch(self, before: int, steps: int) -> bool:
        """Whether nothing is evaluated after `before` steps, nor after any of the next but the last."""
        return (before + steps - 1) // self.epoch_steps == (before - 1) // self.epoch_steps

    def seconds(self) -> float:
        """Seconds per step, over all its turns."""
        return sum(end - begun for begun, end in self.turns)

    def whole(self, epochs: int) -> float:
        """Seconds from the end of the first epoch to that of a later one in which it was not stopped."""
        start, end = self.epochs()[0], self.epochs()[epochs - 1]
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in self.turns)


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds of processes so far."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def percent(ratios: Sequence[float]) -> tuple[float, list[float]]:
    """Geometric mean of ratios as percent above one, which noise alone does not move, and its confidence interval."""
    logarithms = [math.log(each) for each in ratios]
    mean, half = statistics.fmean(logarithms), 0.0
    if len(ratios) > 1:
        half = float(stats.t.ppf(0.975, len(ratios) - 1)) * statistics.stdev(logarithms) / len(ratios) ** 0.5
    middle, low, high = (round(100 * math.expm1(each), 2) for each in (mean, mean - half, mean + half))
    return middle, [low, high]


def main() -> int:
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="configuration of a run")
    parser.add_argument("--data", type=Path, required=True, help="folder of a prepared data set")
    parser.add_argument("--minutes", type=float, default=15.0, help="of turns [%(default)s]")
    parser.add_argument("--steps", type=count, default=3, help="of a turn [%(default)s]")
    parser.add_argument("--threads", type=count, default=max(1, cores - 1), help="of torch [%(default)s]")
    parser.add_argument("overrides", nargs="*", help="more settings, as section.field=value")
    chosen = parser.parse_intermixed_args()  # settings may stand behind options
    chosen.cores = cores
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that nothing is left behind
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(compare(chosen, Path(name))))
    return 0


def compare(chosen: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Lets both train in turn; their difference."""
    with both(chosen, folder) as (run, loop):
        start, before = time.monotonic(), (run.spent(), loop.spent())
        pairs: list[tuple[float, float]] = []
        while time.monotonic() < start + 60 * chosen.minutes or len(run.epochs()) < 2 or len(loop.epochs()) < 2:
            sides = (run, loop) if len(run.turns) % 2 else (loop, run)  # a machine that gets slower hits both alike
            seconds = {side.name: side.turn(chosen.steps) for side in sides}
            if (a := seconds[run.name]) and (b := seconds[loop.name]):
                pairs.append((a, b))
            if len(run.turns) % 20 == 0 and pairs:
                so_far = percent([a / b for a, b in pairs])
                print(f"{len(pairs)} pairs: {so_far[0]} % {so_far[1]}", file=sys.stderr)
        (threads, processes), (same, _) = (
            [now - then for now, then in zip(side.spent(), spent, strict=True)]
            for side, spent in zip((run, loop), before, strict=True)
        )
        lasted = time.monotonic() - start if run.alone else run.seconds()
        background = processes / lasted + threads / run.seconds() - same / loop.seconds()
        overhead, interval = percent([a / b for a, b in pairs])
        epochs = min(len(run.epochs()), len(loop.epochs()))
        return {
            "overhead_percent": overhead,
            "confidence_interval": interval,
            "whole_run_percent": round(100 * (run.whole(epochs) / loop.whole(epochs) - 1), 2),
            "background_percent": round(100 * background, 2),
            "seconds_of_a_step": round(statistics.median(b for _, b in pairs), 4),
            "pairs": len(pairs),
            "epochs": epochs,
            "threads": chosen.threads,
            "cores": chosen.cores,
        }


@contextmanager
def both(chosen: argparse.Namespace, folder: Path) -> Iterator[tuple[Side, Side]]:
    """The run and the bare loop, each stopped behind its first epoch; what is left of them ends with the body."""
    overrides = [
        f"data.path={chosen.data.absolute()}",
        f"run.storage={folder}",
        "run.name=run",
        "training.epochs=1000",
        "cluster.workers=1",
        f"cluster.cpus_per_worker={chosen.threads}",
        "tracking.every_steps=1",  # more than a run has: records the end of each step
        *chosen.overrides,
    ]
    command = [sys.executable, "-m", "pipeline.cli.main", "train", str(chosen.config), *overrides]
    settings = settings_io.load(chosen.config, overrides)
    data, training = settings.data, settings.training
    steps = ImageStream(Path(data.path), data, "train", batch_size=training.batch_size, seed=training.seed).steps()
    cores = sorted(os.sched_getaffinity(0))
    own, others = set(cores[: chosen.threads]), set(cores[chosen.threads :])
    side = partial(Side, alone=bool(others), epoch_steps=steps)
    with ExitStack() as ending:
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        ending.callback(started.wait)
        ending.callback(started.send_signal, signal.SIGTERM)
        wait_for_an_epoch(lambda: ended_at(folder / "run"), psutil.Process(started.pid), "run")
        family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
        (worker,) = [each for each in family if each.cmdline()[:1] == [WORKER]]
        family.remove(worker)
        run = side("run", worker, family, Lines(folder / "run" / paths.STEPS), lambda: ended_at(folder / "run"))
        ending.callback(run.send, signal.SIGCONT)
        run.send(signal.SIGSTOP)

        process = multiprocessing.get_context("spawn").Process(target=bare, args=(settings, folder))
        process.start()
        ending.callback(process.join)
        ending.callback(process.kill)
        loop = side("bare loop", psutil.Process(process.pid), [], Lines(folder / STEPS), lambda: noted(folder / EPOCHS))
        wait_for_an_epoch(loop.epochs, loop.process, loop.name)
        loop.send(signal.SIGSTOP)

        for each in (run, loop):
            each.pin(chosen.threads, own, others or own)
        os.sched_setaffinity(0, others or own)
        ending.callback(os.sched_setaffinity, 0, set(cores))
        yield run, loop


def ended_at(run: Path) -> list[float]:
    """Times at which the epochs of a run ended."""
    return [each.finished_at for each in history.read(run)]


def noted(file: Path) -> list[float]:
    """Times at which the epochs of the bare loop ended."""
    return [float(line) for line in file.read_text().split()] if file.exists() else []


def wait_for_an_epoch(ends: Callable[[], list[float]], process: psutil.Process, name: str) -> None:
    """Waits until the first epoch has ended."""
    while not ends():
        check_at_work(process, name)
        time.sleep(0.1)


def check_at_work(process: psutil.Process, name: str) -> None:
    """Ends the measurement if a measured process has ended."""
    with suppress(psutil.NoSuchProcess):
        if process.status() != psutil.STATUS_ZOMBIE:
            return
    raise SystemExit(f"the {name} ended")


if __name__ == "__main__":
    sys.exit(main())
