"""Claims about records: of epochs, which survive a power failure, and of steps, one for each, whatever happens."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.runs import history, paths
from pipeline.runs.history import EpochRecord, StepLog, StepRecord, read_steps
from tests.helpers.disks import disk_log, small_disk


def write(folder: Path, first: int, last: int, every: int = 2) -> None:
    """What a worker does that takes these steps."""
    log = StepLog(folder, every)
    for step in range(first, last + 1):
        if log.due(step):
            log.add(StepRecord(step, time.time(), {"step/loss": float(step)}))
    log.flush()


def steps(folder: Path) -> list[int]:
    return [record.step for record in read_steps(folder)]


def test_records_of_epochs_are_on_disk_before_they_replace_older_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [EpochRecord(1, 1.5, {"train/loss": 2.0})]
    with disk_log(monkeypatch) as log:
        history.write(tmp_path, records)
    [(_, partial), *_] = log
    assert log == [("flush", partial), ("rename", tmp_path / paths.HISTORY), ("flush", tmp_path)]
    assert partial.parent == tmp_path and partial.name.startswith(f".{paths.HISTORY}.")
    assert history.read(tmp_path) == records


def test_there_is_a_record_for_so_many_steps(tmp_path: Path) -> None:
    assert read_steps(tmp_path) == []
    write(tmp_path, 1, 7)
    assert steps(tmp_path) == [2, 4, 6]
    assert [record.metrics for record in read_steps(tmp_path)] == [{"step/loss": float(step)} for step in (2, 4, 6)]
    assert 1.6e9 < read_steps(tmp_path)[0].recorded_at <= read_steps(tmp_path)[-1].recorded_at


def test_zero_records_none(tmp_path: Path) -> None:
    write(tmp_path, 1, 7, every=0)
    assert steps(tmp_path) == []


def test_steps_that_are_taken_again_keep_their_record(tmp_path: Path) -> None:
    write(tmp_path, 1, 7)
    before = read_steps(tmp_path)
    write(tmp_path, 4, 9)
    assert steps(tmp_path) == [2, 4, 6, 8]
    assert read_steps(tmp_path)[:3] == before


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 6)
    whole = (tmp_path / paths.STEPS).read_text()
    (tmp_path / paths.STEPS).write_text(whole[:-10])
    assert steps(tmp_path) == [2, 4]
    write(tmp_path, 5, 8)
    assert steps(tmp_path) == [2, 4, 6, 8]


def test_a_line_that_was_damaged_between_others_is_written_again(tmp_path: Path) -> None:
    write(tmp_path, 1, 6)
    lines = (tmp_path / paths.STEPS).read_bytes().splitlines(keepends=True)
    (tmp_path / paths.STEPS).write_bytes(lines[0] + b"\0" * (len(lines[1]) - 1) + b"\n" + lines[2])
    write(tmp_path, 3, 8)
    assert steps(tmp_path) == [2, 4, 6, 8]


def test_records_that_a_full_disk_refuses_are_written_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        log = StepLog(disk, 1)
        for step in range(1, 6001):  # 6000 lines of about 90 bytes
            log.add(StepRecord(step, 1.7e9, {"step/loss": float(step), "step/learning_rate": 0.1}))
            if step == 3000:
                (disk / "others").write_bytes(bytes(700_000))
            if step % 100 == 0:
                log.flush()
        assert 3000 <= len(steps(disk)) < 6000, "the disk is full"
        assert (disk / paths.STEPS).read_bytes().endswith(b"\n"), "no line is torn"
        (disk / "others").unlink()
        log.flush()
        assert steps(disk) == list(range(1, 6001))


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b'[{"epoch": 1, "fini', b"[1, 2]", b"\xff\xfe"])
def test_a_damaged_history_is_that_of_the_newest_checkpoint(tmp_path: Path, damage: bytes) -> None:
    records = [EpochRecord(1, 1.5, {"train/loss": 2.0}), EpochRecord(2, 2.5, {"train/loss": float("nan")})]
    (tmp_path / paths.IDENTITY).touch()
    (tmp_path / paths.HISTORY).write_bytes(damage)
    assert history.read(tmp_path) == []
    for name, kept in (("epoch-00001", records[:1]), ("epoch-00002", records), ("epoch-00002-step-0000003", None)):
        folder = tmp_path / paths.CHECKPOINTS / name
        folder.mkdir(parents=True)
        history.write(folder, kept) if kept else (folder / paths.HISTORY).write_bytes(damage)
    assert str(history.read(tmp_path)) == str(records)  # NaN is not equal to itself
    (tmp_path / paths.HISTORY).unlink()
    assert str(history.read(tmp_path)) == str(records)
    with pytest.raises(ValueError):
        history.read(folder)


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b'{"step": 4, "rec', b"[]", b"\xff\xfe", b'{"step": 4}'])
def test_a_damaged_line_costs_no_other(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, 1, 7)
    first, _, last = (tmp_path / paths.STEPS).read_bytes().splitlines(keepends=True)
    (tmp_path / paths.STEPS).write_bytes(first + damage + b"\n" + last)
    assert steps(tmp_path) == [2, 6]
    write(tmp_path, 7, 9)
    assert steps(tmp_path) == [2, 6, 8]
