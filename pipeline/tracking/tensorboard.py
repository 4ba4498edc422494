"""Event files for TensorBoard: the records of a run once more, for those who look there.

A session writes all records so far into a new file, with their original times, and removes the files of earlier
sessions; the file begins with a mark at which a TensorBoard that is open forgets those. So no record is there twice,
however a session ended.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.common.errors import UserError, first_line
from pipeline.config.schema import Settings
from pipeline.runs import history, paths
from pipeline.tracking import run_card

INTERVAL = 15.0
"""Seconds between two looks at the records."""
WRITER = "tensorboardX"
"""Package that writes the files; Ray Tune brings it."""


def check(settings: Settings) -> None:
    """Checks that event files can be written, if they are wanted.

    Raises:
        UserError: the package that writes them is missing.
    """
    if settings.tracking.tensorboard and importlib.util.find_spec(WRITER) is None:
        raise UserError(f"tracking.tensorboard needs the package {WRITER}: pip install {WRITER}, or set it to false")


class EventFiles:
    """Writes the records of a run into event files.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        from tensorboardX import SummaryWriter

        self._run = run
        folder = run / paths.TENSORBOARD
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=0)
        self._written = (0, 0)  # epochs, steps

    def follow(self) -> None:
        """Writes the records that are new since the last call: epochs at the step at which they ended.

        Raises:
            OSError: the folder cannot be read or written at this moment.
        """
        epochs, steps = history.read(self._run), history.read_steps(self._run)
        for step in steps[self._written[1] :]:
            self._write(step.metrics, step.step, step.recorded_at)
        for epoch in epochs[self._written[0] :]:
            self._write(epoch.metrics, epoch.step or epoch.epoch, epoch.finished_at)
        self._written = (len(epochs), len(steps))
        self._writer.flush()

    def close(self) -> None:
        """Adds the card of the run, and closes the file."""
        with suppress(UserError):
            self._writer.add_text("run", run_card.markdown(run_card.read(self._run)), 0)
        self._writer.close()

    def _write(self, metrics: Mapping[str, float], step: int, at: float) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step, walltime=at)


@contextmanager
def written(run: Path, settings: Settings, on_failure: Callable[[str], None]) -> Iterator[None]:
    """Writes event files during the body, in a thread, and what is left at its end, if `tracking.tensorboard` is true.

    Args:
        run: folder of the run.
        settings: of the run.
        on_failure: called with a sentence if they cannot be written; training continues without them.
    """
    if not settings.tracking.tensorboard:
        yield
        return
    ended = threading.Event()

    def write() -> None:
        try:
            files = EventFiles(run)
            last = False
            while not last:
                last = ended.wait(INTERVAL)
                files.follow()
            files.close()
        except Exception as error:  # whatever it is: training is worth more
            on_failure(f"tracking.tensorboard: {run / paths.TENSORBOARD} cannot be written: {first_line(error)}")

    thread = threading.Thread(target=write, name="tensorboard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
