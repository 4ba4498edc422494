"""How long a search waits from the end of one trial to the first training step of the next.

    python -m benchmarks.trial_gap configs/textures_search.yaml --data datasets/textures
    python -m benchmarks.trial_gap configs/textures_search.yaml --data datasets/textures --workers 2

Searches four small networks, one epoch each, one after another. With one worker, a trial trains in a process that has
trained the trial before; with more, it starts them by Ray Train. The first trial, which has none before it, is not
counted. The last line is JSON:

    seconds_between_trials     median over the trials; the first step itself is part of it
    largest                    of these times
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

from pipeline.runs import history, paths
from pipeline.tracking import ledger
from tuning import config as settings_tree
from tuning import search

WIDTHS = (2, 3, 4, 5)


def gaps(file: Path, data: Path, workers: int) -> list[float]:
    """Seconds from the end of each trial to the first step of the next."""
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_tree.load(
            file,
            [
                f"train.data.path={data}",
                f"train.run.storage={folder}",
                "train.training.epochs=1",
                f"train.cluster.workers={workers}",
                "train.tracking.every_steps=1",
                "train.tracking.pictures=false",
                f"search.space={{depth: [1], width: {list(WIDTHS)}}}",
                "search.candidates=[]",
                "search.scheduler=none",
                "search.grace_epochs=1",
                "search.max_concurrent=1",
            ],
        )
        report = search.search(settings)
        first_steps, ends = [], []
        for row in report.rows:
            run = report.folder / row.name
            target = ledger.read_target(run)
            if row.status != "completed" or target is None or target.ended_at is None:
                raise SystemExit(f"trial {row.name} is {row.status}: {row.reason}")
            first_steps.append(history.step_reader(run / paths.STEPS).read()[0].recorded_at)
            ends.append(target.ended_at)
    in_order = sorted(zip(first_steps, ends, strict=True))
    return [later[0] - earlier[1] for earlier, later in itertools.pairwise(in_order)]


def main() -> None:
    """Prints one line of JSON after the lines of the search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="settings of a search")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data set")
    parser.add_argument("--workers", type=int, default=1, help="of each trial [%(default)s]")
    arguments = parser.parse_args()
    found = gaps(arguments.config, arguments.data, arguments.workers)
    result = {
        "seconds_between_trials": round(statistics.median(found), 2),
        "largest": round(max(found), 2),
        "workers": arguments.workers,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
