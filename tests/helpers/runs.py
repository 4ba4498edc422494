"""Runs as users start, watch and end them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import settings_io
from pipeline.runs import paths, train_state


def write_configuration(folder: Path, textures: Path, *changes: str) -> Path:
    """The configuration of a small run in `folder`, with changes such as training.epochs=3: steps take milliseconds."""
    content = {
        "data": {"path": str(textures), "image_size": 16, "flip": False},
        "run": {"storage": str(folder / "runs")},
        "model": {"widths": [4, 4]},
        "optimizer": {"learning_rate": 0.01},
        "training": {"batch_size": 20},
        "tracking": {"pictures": False},  # they take longer than all steps
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings_io.override(content, changes)), encoding="utf-8")
    return path


def final_weights(run: Path) -> dict[str, Tensor]:
    return load_file(paths.stored_checkpoints(run)[-1] / train_state.MODEL)


def assert_same_bits(one: Path, other: Path) -> None:
    """Both runs came to the same epoch, and to the same weights and running statistics there."""
    assert paths.stored_checkpoints(one)[-1].name == paths.stored_checkpoints(other)[-1].name
    left, right = final_weights(one), final_weights(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


class Command:
    """``phasecollapse train`` as a user starts it, in a process of its own."""

    def __init__(self, file: Path, *overrides: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli.main", "train", str(file), *overrides],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment or {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        )

    def end(self) -> tuple[int, str, str]:
        """Waits: exit status, standard output, standard error."""
        output, complaint = self.process.communicate(timeout=900)
        return self.process.returncode, output, complaint

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL for the command alone; its cluster has to notice."""
        # Ray's agents compute nothing, and look for their cluster for a minute.
        family = [child for child in self.family() if not child.cmdline()[0].endswith("Agent")]
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()
        _, alive = psutil.wait_procs(family, timeout=180)
        assert alive == []

    def close(self) -> None:
        """Ends it, if it has not ended, and reads what it said to the end."""
        if self.process.poll() is None:
            self.kill()
        self.process.communicate()


def wait_for(condition: Callable[[], bool], what: str, command: Command | None = None, seconds: float = 200) -> None:
    """Waits until something is so; the test fails if it does not come, or the command ends first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        if command and command.process.poll() is not None:
            pytest.fail(f"{what} did not come, the command ended: {command.end()}")
        time.sleep(0.05)
    pytest.fail(f"{what} did not come in {seconds} s")


def wait_for_epoch(run: Path, epoch: int, command: Command) -> None:
    """Waits until so many epochs are finished."""
    wait_for(lambda: epochs_done(run) >= epoch, f"epoch {epoch} of {run.name}", command)


def wait_for_point(run: Path, point: paths.RunPosition, command: Command) -> None:
    """Waits for a checkpoint there, or behind."""

    def there() -> bool:
        stored = paths.stored_checkpoints(run)
        return bool(stored) and stored[-1].name >= point.name

    wait_for(there, f"{point.name} of {run.name}", command)


def epochs_done(run: Path) -> int:
    """How many epochs the run's history has."""
    file = run / "history.json"
    return len(json.loads(file.read_text())) if file.exists() else 0
