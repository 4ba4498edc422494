"""Delivers runs to their tracking store in a thread of the user's process, while they train.

Training never waits for a store. What it has not acknowledged when a run ends is delivered within a bounded time, or by
``phasecollapse sync``, or by the next command that uses the same folder of runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from data_prep.common import storage
from data_prep.common.errors import UserError, is_disk_full
from pipeline.tracking import ledger
from pipeline.tracking.mlflow_store.errors import Origin, StoreFault
from pipeline.tracking.mlflow_store.store import SETTING
from pipeline.tracking.run_delivery import Busy, Missing, RunDelivery

logger = logging.getLogger(__name__)

INTERVAL, RETRY, QUIET = 3.0, 10.0, 2.0
"""Seconds between two looks at the folders, until a store that failed is tried again, and until a wait at the end is
announced."""
END_SECONDS = 10.0
"""How long the end of a run waits for a store that acknowledges nothing more."""


class Delivery:
    """Delivers runs and searches while the body of :meth:`running` works.

    Args:
        folders: of the runs and searches that this process works on; that of a search before those of its trials.
        backlog: finds folders of others, which get what earlier processes could not deliver.
        announce: prints a line for the user.
        origin: what has named the store, for errors.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        backlog: Callable[[], Sequence[Path]],
        announce: Callable[[str], object],
        origin: Origin = SETTING,
    ) -> None:
        self._origin = origin
        self._folders: list[Path] = []
        self._own = deque[RunDelivery]()
        for folder in folders:
            self.add(folder)
        self._find_backlog, self._backlog = backlog, deque[Path]()
        self._announce = announce
        self._deadline = 0.0
        self._warned = False
        self._reason, self._passing = "", False
        """Why the last attempt failed, and whether that may have passed in a moment."""
        self._noted = True
        """Whether what was acknowledged last could be noted in the folder: otherwise it is sent again and again."""
        self._ending, self._ended, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="delivery", daemon=True)

    def add(self, folder: Path) -> None:
        """Delivers the run in `folder`, too."""
        self._folders.append(folder)
        self._own.append(RunDelivery(folder, origin=self._origin, on_progress=self._expect))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Delivers while the body runs; afterwards what is left, as long as the store acknowledges it."""
        self._thread.start()
        try:
            yield
        finally:
            self._finish()

    def _run(self) -> None:
        looked = False
        while not self._ended.is_set():
            last = self._ending.is_set()
            delivered = self._deliver_own()
            if last and (delivered or not self._passing or self._given_up.is_set()):
                self._ended.set()
            elif last:
                self._given_up.wait(INTERVAL / 10)
            elif delivered:
                if not looked:
                    looked = True
                    self._backlog.extend(self._find_backlog())
                self._work_off_the_backlog()
                self._ending.wait(0 if self._backlog else INTERVAL)
            else:
                self._ending.wait(RETRY)

    def _deliver_own(self) -> bool:
        """Delivers the folders until one fails, which is the last one the next time."""
        for _ in range(len(self._own)):
            if not self._attempt(self._own[0]):
                self._own.rotate(-1)
                return False
            self._own.rotate(-1)
        self._warned = False
        return True

    def _attempt(self, one: RunDelivery) -> bool:
        """Whether the store acknowledged all that the folder holds; warns where it begins to fail during the body."""
        try:
            one.deliver()
        except Busy:
            return True  # another process delivers
        except OSError as error:
            self._noted = False
            self._reason = f"{one.folder} cannot be read or written ({storage.first_line(error)})"
            self._passing = not is_disk_full(error)  # shared storage may fail for a moment
        except (StoreFault, UserError) as error:
            self._reason, self._passing = str(error), False
        except Exception as error:  # a thread that ends would deliver nothing more
            logger.debug("delivery failed", exc_info=True)
            self._reason, self._passing = f"delivery failed ({type(error).__name__}: {error})", False
        else:
            self._reason, self._noted = "", True
            return True
        if not (self._warned or self._passing or self._ending.is_set()):
            logger.warning(
                "%s: training continues, and what is missing is sent as soon as the store takes it, or by "
                "'phasecollapse sync %s'",
                self._reason,
                self._folders[0],
            )
            self._warned = True
        return False

    def _work_off_the_backlog(self) -> None:
        """Delivers one of the runs that earlier processes have left."""
        if self._backlog:
            folder = self._backlog.popleft()
            try:
                RunDelivery(folder, owned=False).deliver()
            except Exception:  # its own command, or `sync`, says what is wrong
                logger.debug("%s is not delivered", folder, exc_info=True)

    def _expect(self, extra: float) -> None:
        if self._noted:
            self._deadline = time.monotonic() + END_SECONDS + extra

    def _finish(self) -> None:
        """Waits until everything is delivered or the store answers no more; says what is missing."""
        self._ending.set()
        began = time.monotonic()
        announced = False
        try:
            while not self._ended.wait(0.05):
                now = time.monotonic()
                if now > max(self._deadline, began + END_SECONDS):
                    break
                if not announced and now > began + QUIET:
                    announced = True
                    self._announce(
                        f"sending the rest to the tracking store, until it does not answer for {END_SECONDS:.0f} s"
                    )
        finally:
            self._given_up.set()
        self._report()

    def _report(self) -> None:
        """Says what the store lacks, and why unless a warning has said so."""
        lacking = Missing()
        for folder in self._folders:
            try:
                lacking = lacking.plus(RunDelivery(folder).missing())
            except (OSError, Busy):
                lacking = lacking.plus(Missing(rest=True))
        if lacking.anything:
            first = self._folders[0]
            sentence = (
                f"the tracking store lacks {lacking} of {first.name}: 'phasecollapse sync {first}' sends them, and so "
                "does the next command on that folder of runs"
            )
            if self._warned:
                self._announce(sentence)
            else:
                logger.warning("%s: %s", self._reason or "the tracking store does not answer", sentence)


def undelivered(storage: Path, besides: Sequence[Path] = ()) -> list[Path]:
    """Folders of runs and searches in a folder of runs whose store lacks something, searches before their trials.

    Args:
        storage: folder of the runs.
        besides: folders that are left out, with those inside them.
    """
    found = []
    for folder in ledger.tracked(storage):
        if folder not in besides and folder.parent not in besides:
            with suppress(OSError, Busy):  # it is being trained
                if RunDelivery(folder, owned=False).missing().anything:
                    found.append(folder)
    return found
