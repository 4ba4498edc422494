"""The whole path on generated textures, on the CPU: ``make demo``.

Prepares the data set, trains a phase-collapse network on two workers, trains it again with the modulus taken out, fits
a linear classifier to the pixels, and searches over depth and width. Everything lies in demo/; what has finished there
is not repeated. Each command is shown as one would type it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from data_prep.common.errors import UserError
from pipeline.config import settings_io
from pipeline.runs import history

if TYPE_CHECKING:
    from pipeline.training.dataloader import Subset

ROOT = Path(__file__).parent.parent
DATA, RUNS = "demo/textures", "demo/runs"
CONFIG, SEARCH = "configs/textures.yaml", "configs/textures_search.yaml"
console = Console(highlight=False)


def main() -> int:
    """Runs the demo. Returns the exit status: that of the first command that fails."""
    start = time.monotonic()
    try:
        phasecollapse("prepare", "textures", DATA)
        with_modulus = train("collapse")
        without = train("identity", "model.nonlinearity=identity")
        linear = fit_linear_classifier()
        phasecollapse("tune", SEARCH, f"train.data.path={DATA}", f"train.run.storage={RUNS}")
    except subprocess.CalledProcessError as error:
        console.print("[red]The demo stopped: the message is above. `make demo` continues.")
        return error.returncode
    except UserError as error:
        console.print(f"error: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("interrupted: `make demo` continues")
        return 130
    console.rule("What came out")
    console.print(results(with_modulus, without, linear))
    console.print(
        f"\nEverything is in {ROOT / 'demo'}: the data set, the runs with their checkpoints, and the search, whose "
        f"table is above.\nLook at the runs: [bold].venv/bin/phasecollapse ui --storage {RUNS}[/]\n"
        f"This took {(time.monotonic() - start) / 60:.1f} minutes.",
        soft_wrap=True,
    )
    return 0


def phasecollapse(*arguments: str) -> None:
    """Shows and runs a command.

    Raises:
        CalledProcessError: it failed.
    """
    console.print(f"\n[bold]$ phasecollapse {' '.join(arguments)}", soft_wrap=True)
    command = subprocess.Popen([sys.executable, "-m", "pipeline.cli.main", *arguments], cwd=ROOT)
    while command.returncode is None:
        with contextlib.suppress(KeyboardInterrupt):  # the command gets it too, and needs time to tidy up
            command.wait()
    if command.returncode:
        raise subprocess.CalledProcessError(command.returncode, command.args)


def train(name: str, *overrides: str) -> float:
    """Trains a run by that name. Returns its top-1 accuracy on the validation images."""
    phasecollapse("train", CONFIG, f"data.path={DATA}", f"run.storage={RUNS}", f"run.name={name}", *overrides)
    return history.read(ROOT / RUNS / name)[-1].metrics["validation/top1"]


def fit_linear_classifier() -> tuple[float, float]:
    """Multinomial logistic regression on the pixels, to convergence: accuracy on training and on validation images."""
    kept = ROOT / "demo" / "linear_classifier.json"
    if kept.exists():
        on_training, on_validation = json.loads(kept.read_text(encoding="utf-8"))
        return on_training, on_validation
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from pipeline.training.dataloader import ImageStream

    console.print("\n[bold]Linear classifier on the pixels")
    settings = settings_io.load(ROOT / CONFIG)

    def pixels(subset: Subset) -> tuple[np.ndarray, np.ndarray]:
        stream = ImageStream(ROOT / DATA, settings.data, subset, batch_size=500, seed=0)
        batches = list(stream.epoch(1))
        images = np.concatenate([batch.images.numpy() for batch in batches]).reshape(stream.samples, -1)
        return images.astype(np.float32) / 127.5 - 1, np.concatenate([batch.labels.numpy() for batch in batches])

    (images, labels), (unseen, their_labels) = pixels("train"), pixels("validation")
    classifier = LogisticRegression(max_iter=1000).fit(images, labels)
    iterations = int(classifier.n_iter_.max())
    if iterations >= classifier.max_iter:
        raise UserError(f"the linear classifier has not converged after {iterations} iterations")
    console.print(f"converged after {iterations} iterations of L-BFGS on {images.shape[1]:,} values an image")
    accuracies = float(classifier.score(images, labels)), float(classifier.score(unseen, their_labels))
    kept.write_text(json.dumps(accuracies), encoding="utf-8")
    return accuracies


def results(with_modulus: float, without: float, linear: tuple[float, float]) -> Table:
    """The three accuracies, side by side."""
    table = Table("top-1 accuracy on images not trained on", "", title="Textures, 10 classes (chance: 10 %)")
    table.columns[1].justify = "right"
    table.add_row("phase-collapse network", f"[green]{with_modulus:.1%}")
    table.add_row("the same network, modulus taken out", f"{without:.1%}")
    table.add_row(f"linear classifier on the pixels (training images: {linear[0]:.1%})", f"{linear[1]:.1%}")
    return table


if __name__ == "__main__":
    sys.exit(main())
