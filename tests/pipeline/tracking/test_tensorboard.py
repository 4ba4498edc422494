"""Claims about event files for TensorBoard: each record is there once, with its time, also after a resume."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from data_prep.common.errors import UserError
from pipeline.config.schema import DataSettings, Settings, TrackingSettings, TrainingSettings
from pipeline.runs import history, paths
from pipeline.runs.history import EpochRecord, StepRecord
from pipeline.tracking import tensorboard

SETTINGS = Settings(
    data=DataSettings(path="unused"),
    training=TrainingSettings(epochs=3, batch_size=10),
    tracking=TrackingSettings(tensorboard=True),
)


def epoch(number: int, loss: float = 1.0) -> EpochRecord:
    return EpochRecord(number, 1000.0 + number, {"train/loss": loss}, 4 * number)


def add_steps(run: Path, *steps: int) -> None:
    with (run / paths.STEPS).open("a") as file:
        for step in steps:
            file.write(json.dumps(asdict(StepRecord(step, 900.0 + step, {"step/loss": 2.0}))) + "\n")


def events(run: Path) -> Iterator[Event]:
    """The records of the only event file, as TensorBoard reads them: length, checksum, content, checksum."""
    [file] = (run / paths.TENSORBOARD).iterdir()
    content = file.read_bytes()
    while content:
        [length] = struct.unpack_from("<Q", content)
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def scalars(run: Path) -> list[tuple[str, int, float, float]]:
    return [
        (value.tag, event.step, event.wall_time, value.simple_value)
        for event in events(run)
        for value in event.summary.value
        if value.WhichOneof("value") == "simple_value"
    ]


def test_a_resumed_run_has_each_record_once_with_its_time(tmp_path: Path) -> None:
    failures: list[str] = []
    history.write(tmp_path, [epoch(1)])
    add_steps(tmp_path, 2, 4)
    with tensorboard.written(tmp_path, SETTINGS, failures.append):
        pass
    [first] = (tmp_path / paths.TENSORBOARD).iterdir()
    first.rename(first.with_name("events.out.tfevents.1000000000.earlier"))  # its name has the second of its session
    with tensorboard.written(tmp_path, SETTINGS, failures.append):
        add_steps(tmp_path, 6)
        history.write(tmp_path, [epoch(1), epoch(2, math.nan)])
    assert failures == []
    found = scalars(tmp_path)
    assert [one for one in found if one[0] == "step/loss"] == [("step/loss", n, 900.0 + n, 2.0) for n in (2, 4, 6)]
    losses = [one for one in found if one[0] == "train/loss"]
    assert [one[:3] for one in losses] == [("train/loss", 4, 1001.0), ("train/loss", 8, 1002.0)]
    assert losses[0][3] == 1.0 and math.isnan(losses[1][3])
    starts = [event for event in events(tmp_path) if event.WhichOneof("what") == "session_log"]
    assert [(one.step, one.session_log.status) for one in starts] == [(0, 1)], (
        "an open TensorBoard forgets the old file"
    )


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / paths.TENSORBOARD).write_text("a file where a folder should be")
    failures: list[str] = []
    with tensorboard.written(tmp_path, SETTINGS, failures.append):
        pass
    [failure] = failures
    assert failure.startswith(f"tracking.tensorboard: {tmp_path / paths.TENSORBOARD} cannot be written")


def test_nothing_is_written_unasked(tmp_path: Path) -> None:
    asked_for_none = SETTINGS.model_copy(update={"tracking": TrackingSettings()})
    with tensorboard.written(tmp_path, asked_for_none, pytest.fail):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "WRITER", "no_such_package_here")
    with pytest.raises(UserError, match="needs the package no_such_package_here: pip install"):
        tensorboard.check(SETTINGS)
