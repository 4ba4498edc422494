"""Several processes write into one tracking store at once: rows a second, errors, and rows that are lost.

    python -m benchmarks.tracking_writers --writers 4
    python -m benchmarks.tracking_writers --uri postgresql://127.0.0.1/mlflow --writers 8

Each writer is a run of its own: it writes the records and files of a run into a folder, and delivers them as `train`
does, batch after batch. All begin in the same moment, so that they also create the experiment at once. Afterwards the
rows and files are counted in the store. Passwords are in the environment (PGUSER, PGPASSWORD; MLFLOW_TRACKING_USERNAME,
MLFLOW_TRACKING_PASSWORD). Prints one line of JSON; the exit status is 1 if a row is lost or a writer failed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from pathlib import Path
from threading import Barrier
from typing import NamedTuple

from pipeline.runs import paths
from pipeline.runs.history import StepLog, StepRecord
from pipeline.tracking import ledger
from pipeline.tracking.ledger import Target
from pipeline.tracking.run_delivery import RunDelivery

METRICS = ("step/loss", "step/gradient_norm", "step/learning_rate", "step/images_per_second", "step/waiting_for_data")
STEPS_IN_A_BATCH, BATCHES_TO_A_FILE = 10, 20
START_SECONDS = 120
"""How long a writer waits until all others have started, too."""


class Written(NamedTuple):
    """What one writer did."""

    run_id: str | None
    rows: int
    files: int
    slowest_s: float
    """The slowest delivery of a batch."""
    error: str | None


def write(target: Target, folder: Path, seconds: float) -> Written:
    """Writes a run and delivers it for a while."""
    delivery = RunDelivery(folder)
    rows = files = 0
    slowest = 0.0
    try:
        folder.mkdir(parents=True)
        (folder / paths.IDENTITY).touch()
        ledger.write_target(folder, target)
        log = StepLog(folder, 1)
        _start.wait(START_SECONDS)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            first = rows // len(METRICS) + 1
            for step in range(first, first + STEPS_IN_A_BATCH):
                log.add(StepRecord(step, time.time(), dict.fromkeys(METRICS, 1 / step)))
            log.flush()
            rows += STEPS_IN_A_BATCH * len(METRICS)
            if first // STEPS_IN_A_BATCH % BATCHES_TO_A_FILE == 0:
                files += 1
                target = _with_file(folder, target, f"notes/{files}.txt")
            began = time.monotonic()
            delivery.deliver()
            slowest = max(slowest, time.monotonic() - began)
        ledger.end(folder, "FINISHED", time.time(), {}, models=False)
        delivery.deliver()
        missing = delivery.missing()
        error = f"the store lacks {missing}" if missing.anything else None
    except Exception:
        error = traceback.format_exc(limit=1).strip().splitlines()[-1][:300]
    return Written(delivery.run_id(), rows, files, slowest, error)


def _with_file(folder: Path, target: Target, name: str) -> Target:
    """Writes a file that is to be an artifact, too."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x" * 10_000)
    target = target.model_copy(update={"artifacts": {**target.artifacts, name: name}})
    ledger.write_target(folder, target)
    return target


_start: Barrier


def _begin_with(start: Barrier) -> None:
    """Gives a writer's process the barrier at which all wait for each other."""
    global _start
    _start = start


def count(uri: str, run_id: str) -> tuple[int, int]:
    """Rows and files of a run in the store."""
    from pipeline.tracking.mlflow_store.store import Store, connect

    client = connect(Store(uri))
    rows = sum(len(client.get_metric_history(run_id, key)) for key in METRICS)
    return rows, len(client.list_artifacts(run_id, "notes"))


def main() -> int:
    """Runs the writers and counts. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uri", help="tracking store or server [an SQLite database in a temporary folder]")
    parser.add_argument("--writers", type=int, default=4, help="processes that write at once [4]")
    parser.add_argument("--seconds", type=float, default=60, help="for how long [60]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        uri = options.uri or f"sqlite:///{Path(scratch) / 'mlflow.db'}"
        name = f"writers-{int(time.time())}"
        names = [f"writer-{number}" for number in range(1, options.writers + 1)]
        targets = [
            Target(uri=uri, experiment=name, identity=f"{name}-{one}", name=one, started_at=time.time())
            for one in names
        ]
        work = [(target, Path(scratch) / target.name, options.seconds) for target in targets]
        context = multiprocessing.get_context("spawn")
        start = context.Barrier(options.writers)
        with context.Pool(options.writers, _begin_with, [start]) as pool:
            written = pool.starmap(write, work, chunksize=1)
        there = [count(uri, one.run_id) if one.run_id else (0, 0) for one in written]
    rows, files = sum(one.rows for one in written), sum(one.files for one in written)
    lost = sum(abs(one.rows - found) for one, (found, _) in zip(written, there, strict=True))
    lost_files = sum(abs(one.files - found) for one, (_, found) in zip(written, there, strict=True))
    errors = [one.error for one in written if one.error]
    result = {
        "store": uri.partition(":")[0],
        "writers": options.writers,
        "seconds": options.seconds,
        "rows": rows,
        "rows_per_second": round(rows / options.seconds, 1),
        "lost_rows": lost,
        "files": files,
        "lost_files": lost_files,
        "slowest_delivery_s": round(max(one.slowest_s for one in written), 2),
        "errors": errors,
    }
    print(json.dumps(result))
    return 1 if lost or lost_files or errors else 0


if __name__ == "__main__":
    sys.exit(main())
