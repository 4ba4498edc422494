"""Claims about the folder of a run's checkpoints: whole or absent, the newest that is good, few."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.runs import paths
from pipeline.runs.checkpoint_store import Checkpoints, damage
from pipeline.runs.paths import RunPosition
from tests.helpers.disks import disk_log, small_disk


def saving(content: bytes = b"weights") -> Callable[[Path], None]:
    return lambda folder: (folder / "model").write_bytes(content) and None


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_names_sort_as_points_do() -> None:
    points = [
        RunPosition(0),
        RunPosition(0, 5),
        RunPosition(0, 1200),
        RunPosition(1),
        RunPosition(1, 3),
        RunPosition(9, 10**6),
        RunPosition(10),
        RunPosition(12345),
    ]
    assert sorted(point.name for point in points) == [point.name for point in points]


def test_what_is_written_comes_back_and_is_whole(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints")
    assert store.recover() == (None, [])
    written = store.write(RunPosition(2, 7), None, saving())
    assert store.recover() == (written, [])
    assert (written / "model").read_bytes() == b"weights"
    assert damage(written) is None


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2, keep_best=1)
    for epoch, score in ((1, 0.3), (2, 0.9), (3, 0.5), (4, 0.9), (5, 0.1)):
        store.write(RunPosition(epoch), score, saving())
        store.write(RunPosition(epoch, 1), None, saving())
    assert names(tmp_path) == ["epoch-00004", "epoch-00005", "epoch-00005-step-0000001"]
    Checkpoints(tmp_path, keep=1).write(RunPosition(6), 0.0, saving())
    assert names(tmp_path) == ["epoch-00006"]


@pytest.mark.parametrize("part", ["content", "cut", "missing", "description", "empty"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_used(tmp_path: Path, part: str) -> None:
    store = Checkpoints(tmp_path)
    before, last = store.write(RunPosition(1), 0.5, saving()), store.write(RunPosition(2), 0.6, saving(b"new weights"))
    if part == "missing":
        (last / "model").unlink()
    elif part == "description":
        (last / paths.DESCRIPTION).write_text('{"score"')
    elif part == "empty":
        (last / "model").unlink()
        (last / paths.DESCRIPTION).unlink()
    else:
        (last / "model").write_bytes(b"new weight5" if part == "content" else b"new")
    found, complaints = store.recover()
    assert found == before
    (complaint,) = complaints
    assert complaint.startswith("checkpoint epoch-00002 is damaged (")
    assert names(tmp_path) == ["damaged-epoch-00002", "epoch-00001"]
    assert store.recover() == (before, [])
    assert store.write(RunPosition(2), 0.6, saving()).is_dir(), "its place is free"


def test_what_was_half_written_is_swept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)

    def interrupted(folder: Path) -> None:
        saving()(folder)
        raise KeyboardInterrupt

    before = store.write(RunPosition(1), None, saving())
    with pytest.raises(KeyboardInterrupt):
        store.write(RunPosition(2), None, interrupted)
    (tmp_path / "discarded-epoch-00001").mkdir()
    assert len(names(tmp_path)) == 3
    assert paths.checkpoints_in(tmp_path) == [before]
    assert store.recover() == (before, [])
    assert names(tmp_path) == ["epoch-00001"]


def test_one_of_the_same_name_is_replaced_as_a_whole(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    store.write(RunPosition(1), None, saving(b"old"))
    again = store.write(RunPosition(1), None, saving(b"new"))
    assert (again / "model").read_bytes() == b"new"
    assert names(tmp_path) == ["epoch-00001"]


def test_a_checkpoint_is_on_disk_before_it_has_its_name_and_before_older_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Checkpoints(tmp_path / "checkpoints", keep=1)
    with disk_log(monkeypatch) as log:
        store.write(RunPosition(1), None, saving())
    assert log == [
        ("flush", tmp_path),
        ("flush", store.folder / "partial-epoch-00001" / paths.DESCRIPTION),
        ("flush", store.folder / "partial-epoch-00001" / "model"),
        ("flush", store.folder / "partial-epoch-00001"),
        ("rename", store.folder / "epoch-00001"),
        ("flush", store.folder),
    ]
    with disk_log(monkeypatch) as log:
        store.write(RunPosition(2), None, saving())
    assert log[-3:] == [
        ("rename", store.folder / "epoch-00002"),
        ("flush", store.folder),
        ("remove", store.folder / "epoch-00001"),
    ]


def test_a_full_disk_keeps_what_was_there_and_gets_its_room_back(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        store = Checkpoints(disk / "checkpoints")
        before = store.write(RunPosition(1), None, saving(bytes(10**6)))
        with pytest.raises(OSError, match="No space left"):
            store.write(RunPosition(2), None, saving(bytes(2 * 10**6)))
        assert names(store.folder) == ["epoch-00001"]
        assert damage(before) is None
        assert store.write(RunPosition(2), None, saving(bytes(10**5))).is_dir()
