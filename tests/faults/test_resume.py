"""Claims about runs in one process that are killed or asked to stop, or whose storage fails."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import UserError
from pipeline.config import settings_io
from pipeline.config.schema import DataSettings, Settings
from pipeline.launch import launcher
from pipeline.runs import history, paths, trained_model
from pipeline.runs.checkpoint_store import DAMAGED
from pipeline.runs.paths import RunPosition
from pipeline.tracking import writer
from pipeline.training import setup
from pipeline.training.dataloader import Batch, ImageStream, Subset
from tests.helpers.disks import fill, small_disk
from tests.helpers.gate import OPTION, Gate
from tests.helpers.runs import Command, assert_same_bits, epochs_done, wait_for, wait_for_point, write_configuration

pytestmark = pytest.mark.slow

EPOCHS = 3
STEPS = 12


@pytest.fixture(scope="module")
def file(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run of three epochs of twelve steps."""
    folder = tmp_path_factory.mktemp("resume")
    changes = (f"training.epochs={EPOCHS}", "cluster.workers=0", f"tracking.uri=sqlite:///{folder}/mlflow.db")
    return write_configuration(folder, textures, *changes)


@pytest.fixture
def settings(file: Path, request: pytest.FixtureRequest) -> Callable[..., Settings]:
    """Settings of a run that is named after the test."""
    name = re.sub(r"\W+", "-", request.node.name)
    return lambda *overrides: settings_io.load(file, [f"run.name={name}", *overrides])


@pytest.fixture(scope="module")
def alone(file: Path) -> Path:
    """The folder of a run that nothing happened to."""
    return launcher.train(settings_io.load(file, ["run.name=alone"]), progress=False).folder


class Killed(BaseException):
    """Ends a run at once, as SIGKILL would: nothing may save on the way."""


class Recorded(ImageStream):
    """Notes which images are trained on when, and calls `before_batch` with the number of batches so far."""

    seen: list[tuple[int, int, list[int]]]
    before_batch: Callable[[int], None]

    def __init__(self, folder: Path, data: DataSettings, subset: Subset, **options: Any) -> None:
        super().__init__(folder, data, subset, **options)
        self.trains = subset == "train"

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for batch in super().epoch(epoch, start):
            if self.trains:
                Recorded.before_batch(len(Recorded.seen))
                Recorded.seen.append((epoch, batch.end, batch.indices.tolist()))
            yield batch


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    Recorded.seen = []
    Recorded.before_batch = staticmethod(lambda number: None)
    monkeypatch.setattr(setup, "ImageStream", Recorded)
    return Recorded


def test_every_image_is_once_in_each_epoch_that_led_to_the_weights(
    settings: Callable[..., Settings], alone: Path, recorded: type[Recorded]
) -> None:
    kills = random.Random(0)
    deaths = 0
    history: dict[tuple[int, int], list[int]] = {}
    while True:
        recorded.seen = []
        last = kills.randrange(2, 20)

        def kill(number: int, last: int = last) -> None:
            if number == last:
                raise Killed

        recorded.before_batch = staticmethod(kill)
        try:
            outcome = launcher.train(settings("checkpoint.every_steps=5"), progress=False)
        except Killed:
            deaths += 1
        else:
            break
        finally:
            # The next attempt repeats the steps after the checkpoint from which it resumes.
            history |= {(epoch, end): indices for epoch, end, indices in recorded.seen}
    assert deaths >= 3
    assert_same_bits(alone, outcome.folder)
    for epoch in range(1, EPOCHS + 1):
        order = list(itertools.chain(*(indices for (at, _), indices in sorted(history.items()) if at == epoch)))
        assert len(order) == 240 and sorted(order) == list(range(240))


def test_sigkill_at_any_step_changes_no_bit(file: Path, alone: Path, tmp_path: Path) -> None:
    """It comes within a few steps from a checkpoint, whatever the run does then."""
    run, chance, gate = alone.with_name("killed"), random.Random(1), Gate(tmp_path / "gate")
    options = ("run.name=killed", "checkpoint.every_steps=1", OPTION)
    environment = os.environ | gate.variables()
    for epochs in (0, 1):
        point = RunPosition(epochs, chance.randrange(1, STEPS))
        gate.close(epochs * STEPS + point.steps + 5)
        command = Command(file, *options, environment=environment)
        wait_for_point(run, point, command)
        command.kill()
        assert epochs_done(run) < EPOCHS, "it was killed too late to show anything"
    gate.open()
    status, output, complaint = Command(file, *options, environment=environment).end()
    assert (status, complaint) == (0, "")
    assert "resumes after epoch" in output
    assert_same_bits(alone, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves(
    file: Path, alone: Path, number: signal.Signals
) -> None:
    run = alone.with_name(f"stopped-{number}")
    command = Command(file, f"run.name={run.name}", "data.image_size=32", "training.epochs=100")
    wait_for((run / paths.PROGRESS).exists, "the first step", command)
    command.process.send_signal(number)
    status, _, complaint = command.end()
    assert (status, complaint.strip()) == (130, "interrupted: rerun the same command to resume")
    assert "-step-" in paths.stored_checkpoints(run)[-1].name or epochs_done(run) > 0
    assert not list(run.glob("checkpoints/partial-*"))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_stop_within_an_evaluation_is_saved_too_and_changes_no_bit(
    settings: Callable[..., Settings], alone: Path, monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    changes = ["optimizer.ema_decay=0.9"] if averaged else []
    if averaged:
        alone = launcher.train(settings("run.name=alone-averaged", *changes), progress=False).folder
    phase = writer.ProgressWriter.phase

    def stopping(self: writer.ProgressWriter, epoch: int, name: str, steps: int) -> Callable[[int], None]:
        if (epoch, name) == (2, "evaluation"):
            signal.raise_signal(signal.SIGTERM)
        return phase(self, epoch, name, steps)

    with monkeypatch.context() as patch:
        patch.setattr(writer.ProgressWriter, "phase", stopping)
        with pytest.raises(KeyboardInterrupt):
            launcher.train(settings(*changes), progress=False)
    run = alone.with_name(settings().run.name or "")
    assert paths.stored_checkpoints(run)[-1].name == RunPosition(1, STEPS).name
    assert_same_bits(alone, launcher.train(settings(*changes), progress=False).folder)
    losses = [[record.metrics["validation/loss"] for record in history.read(one)] for one in (alone, run)]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    settings: Callable[..., Settings], alone: Path, recorded: type[Recorded], capsys: pytest.CaptureFixture[str]
) -> None:
    def kill(number: int) -> None:
        if number == 20:
            raise Killed

    recorded.before_batch = staticmethod(kill)
    with pytest.raises(Killed):
        launcher.train(settings("checkpoint.every_steps=4"), progress=False)
    run = alone.with_name(settings().run.name or "")
    before, last = paths.stored_checkpoints(run)[-2:]
    weights = last / paths.MODEL
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    recorded.before_batch = staticmethod(lambda number: None)
    outcome = launcher.train(settings())
    assert (
        f"checkpoint {last.name} is damaged (model.safetensors is not what was written) and was moved to "
        f"{DAMAGED}{last.name}; resuming from {before.name}"
    ) in capsys.readouterr().out
    assert_same_bits(alone, outcome.folder)


def test_a_full_disk_is_survived_for_a_while_and_then_reported(
    settings: Callable[..., Settings], alone: Path, tmp_path: Path, recorded: type[Recorded]
) -> None:
    with small_disk(tmp_path / "disk", 8) as disk:
        filler: list[Path] = []

        def full_for_a_while(number: int) -> None:
            if number == 6:
                filler.append(fill(disk))
            elif number == 15:
                filler.pop().unlink()

        recorded.before_batch = staticmethod(full_for_a_while)
        options = (f"run.storage={disk / 'runs'}", "checkpoint.every_steps=4")
        assert_same_bits(alone, launcher.train(settings(*options), progress=False).folder)

        recorded.seen = []
        recorded.before_batch = staticmethod(lambda number: filler.append(fill(disk)) if number == 6 else None)
        options = (*options, "run.name=impatient", "checkpoint.max_save_failures=0")
        with pytest.raises(
            UserError, match=r"run\.storage: .*impatient cannot be written \(No space left.*free disk space"
        ):
            launcher.train(settings(*options), progress=False)
        filler.pop().unlink()
        recorded.before_batch = staticmethod(lambda number: None)
        assert_same_bits(alone, launcher.train(settings(*options), progress=False).folder)


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(settings: Callable[..., Settings], alone: Path) -> None:
    with pytest.raises(
        UserError, match=r"became (nan|inf) in epoch 1, step \d+ \(training images \d+, .*max_grad_norm"
    ):
        launcher.train(settings("optimizer.learning_rate=1.0e+30", "checkpoint.every_steps=1"), progress=False)
    run = alone.with_name(settings().run.name or "")
    for stored in paths.stored_checkpoints(run):
        assert all(value.isfinite().all() for value in trained_model.read_weights(stored).values())


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from data_prep.common.errors import UserError
from pipeline.config import settings_io
from pipeline.launch import launcher
from pipeline.training import trainer
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 1000 * 2**20,) * 2)
try:
    launcher.train(settings_io.load(Path(sys.argv[1]), sys.argv[2:]), progress=False)
except UserError as error:
    print(error)
"""


def test_too_little_memory_says_what_to_lower(file: Path) -> None:
    big = ["run.name=big", "data.image_size=64", "model.widths=[512]", "training.batch_size=200"]
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(file), *big], capture_output=True, text=True, timeout=300
    )
    assert re.match(r"memory is too small for a step \(.*\): set training\.activation_checkpointing", done.stdout), done


def test_a_batch_in_parts_learns_what_a_whole_one_does(settings: Callable[..., Settings]) -> None:
    """Without statistics of batches, a sum over parts is that over the batch."""
    options = ("model.standardize=false", "model.classifier_normalization=none", "training.epochs=1")
    whole, parts = (
        launcher.train(
            settings(*options, f"run.name=parts-{name}", f"training.micro_batch_size={most}"), progress=False
        )
        for name, most in (("none", "null"), ("three", "7"))
    )
    for name, value in whole.metrics.items():
        if not re.search("second|waiting|saving", name):
            assert parts.metrics[name] == pytest.approx(value, rel=1e-3), name
