"""Several processes write into one tracking store at once: rows a second, errors, and rows that are lost.

    python -m benchmarks.tracking_writers --writers 4
    python -m benchmarks.tracking_writers --uri postgresql://127.0.0.1/mlflow --writers 8

Each writer is a run of its own, which logs batches as a training run does, and files as artifacts. Afterwards the rows
are counted in the store. Passwords are in the environment (PGUSER, PGPASSWORD; MLFLOW_TRACKING_USERNAME,
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
from typing import NamedTuple

METRICS = ("step/loss", "step/gradient_norm", "step/learning_rate", "step/images_per_second", "step/waiting_for_data")
STEPS_IN_A_BATCH, BATCHES_TO_A_FILE = 10, 20


class Written(NamedTuple):
    """What one writer did."""

    run_id: str
    rows: int
    files: int
    slowest_s: float
    """The slowest call."""
    error: str | None


def write(uri: str, name: str, seconds: float) -> Written:
    """Writes rows for a while."""
    from mlflow.entities import Metric

    from pipeline.tracking.mlflow_store.store import Store, connect, find_or_create_experiment, locked

    store = Store(uri)
    rows = files = batch = 0
    slowest, run_id = 0.0, ""
    try:
        with locked(store):
            client = connect(store)
            place = find_or_create_experiment(client, store, name)
        run_id = client.create_run(place.experiment_id).info.run_id
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            steps = range(batch * STEPS_IN_A_BATCH, (batch + 1) * STEPS_IN_A_BATCH)
            began = time.monotonic()
            metrics = [Metric(key, 0.5, int(time.time() * 1000), step) for step in steps for key in METRICS]
            client.log_batch(run_id, metrics=metrics)
            rows, batch = rows + len(metrics), batch + 1
            if batch % BATCHES_TO_A_FILE == 1:
                client.log_text(run_id, "x" * 10_000, f"notes/{batch}.txt")
                files += 1
            slowest = max(slowest, time.monotonic() - began)
        client.set_terminated(run_id)
    except Exception:
        return Written(run_id, rows, files, slowest, traceback.format_exc(limit=1).strip().splitlines()[-1][:300])
    return Written(run_id, rows, files, slowest, None)


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
        work = [(uri, name, options.seconds)] * options.writers
        with multiprocessing.get_context("spawn").Pool(options.writers) as pool:
            written = pool.starmap(write, work, chunksize=1)
        there = [count(uri, one.run_id) if one.run_id else (0, 0) for one in written]
    rows, files = sum(one.rows for one in written), sum(one.files for one in written)
    lost = rows - sum(found for found, _ in there)
    lost_files = files - sum(found for _, found in there)
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
        "slowest_call_s": round(max(one.slowest_s for one in written), 2),
        "errors": errors,
    }
    print(json.dumps(result))
    return 1 if lost or lost_files or errors else 0


if __name__ == "__main__":
    sys.exit(main())
