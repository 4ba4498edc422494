"""A search's folder: one search, one process, one set of settings; and what the next session learns from it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data_prep.common.errors import UserError
from data_prep.format.manifest import Manifest, load_manifest
from pipeline.config.settings_io import resolve
from pipeline.runs import history
from pipeline.runs.history import EpochRecord
from tuning import search_folder
from tuning.config import SearchSettings
from tuning.schedulers import build_scheduler
from tuning.search_folder import Record
from tuning.space.candidate import Candidate


@pytest.fixture
def data(textures: Path) -> Manifest:
    return load_manifest(textures)


def settings(storage: Path, train: dict[str, Any] | None = None, **search: Any) -> SearchSettings:
    content = {
        "train": {"data": {"path": "textures"}, "run": {"storage": str(storage)}, **(train or {})},
        "search": {"name": "test", "space": {"depth": [2], "width": [8]}, "grace_epochs": 1, **search},
    }
    return resolve(SearchSettings, content, "test.yaml")


def test_records_are_there_in_the_next_session(tmp_path: Path, data: Manifest) -> None:
    record = Record(status="stopped early", errors={1: 0.9, 2: 0.8})
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
        first = folder.identity.id
        folder.update("8-8", record)
    with search_folder.claim(settings(tmp_path), data) as folder:
        assert folder.identity.id == first
        assert folder.record("8-8") == record
        assert (folder.record("8-8").epochs, folder.record("8-8").error) == (2, 0.8)
        assert folder.record("never seen") == Record()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("trials.json", damage) for damage in ("", "[1]", '{"8-8": {"status": "lost"}}', '{"8-8"')),
        *(("search.yaml", damage) for damage in ("", "id: 1f\n", "\0" * 40, "[1]\n...\n")),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: Manifest, file: str, damage: str) -> None:
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
    (folder.path / file).write_text(damage)
    says = rf"{re.escape(file)} cannot be read"
    with pytest.raises(UserError, match=says), search_folder.claim(settings(tmp_path), data):
        pass


def test_what_a_killed_process_left_of_the_identity_is_removed(tmp_path: Path, data: Manifest) -> None:
    leftover = tmp_path / "test" / ".search.yaml.0123456789abcdef.partial"
    for begins in (False, True):
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_text("id: 1f")
        with search_folder.claim(settings(tmp_path), data) as folder:
            if begins:
                folder.begin()
        assert not leftover.exists() and folder.path.exists() == begins


def test_a_failed_trial_that_is_tried_again_keeps_its_point(tmp_path: Path, data: Manifest) -> None:
    failed = Record(status="failed", errors={1: 0.9}, reason="lost", losses=2, point={"widths": [8, 8]})
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
        folder.update("8-8", failed)
        folder.retry_failed()
        assert folder.record("8-8") == Record(errors={1: 0.9}, point={"widths": [8, 8]})


def test_a_second_process_is_refused(tmp_path: Path, data: Manifest) -> None:
    with (
        search_folder.claim(settings(tmp_path), data),
        pytest.raises(UserError, match="under way in another process"),
        search_folder.claim(settings(tmp_path), data),
    ):
        pass


def test_changed_settings_are_refused_and_named(tmp_path: Path, data: Manifest) -> None:
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
    with (
        pytest.raises(UserError, match=r"search.error: top1 → top5; data set: .* → [0-9a-f]{12}"),
        search_folder.claim(settings(tmp_path, error="top5"), data.model_copy(update={"splits": {}})),
    ):
        pass


def test_a_search_may_be_enlarged_and_keeps_the_trials_that_have_ended(tmp_path: Path, data: Manifest) -> None:
    first, second = Candidate((8, 8)), Candidate((4, 4), {"optimizer.learning_rate": 0.3})
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
        folder.expect([first, second])
        folder.update("8-8", folder.record("8-8").model_copy(update={"status": "completed", "errors": {1: 0.5}}))
    larger = settings(tmp_path, space={"depth": [3], "width": {"integer": [2, 9]}}, searcher="random", trials=5, seed=3)
    with search_folder.claim(larger, data) as folder:
        folder.begin()
        new = [Candidate((2, 2, 2)), second]
        known = search_folder.with_earlier(folder.path, folder.records, new, lambda one: False)
        assert known == [first, Candidate((2, 2, 2)), second]
        folder.expect(known[:2])
        assert list(folder.records) == ["8-8", "2-2-2"], "what is not to come any more is forgotten"
        assert folder.record("8-8").errors == {1: 0.5}
    with search_folder.claim(larger, data) as folder:
        assert folder.identity.settings == larger


def test_trials_that_have_begun_continue_in_a_search_that_was_enlarged(tmp_path: Path, data: Manifest) -> None:
    started, seen, untouched = Candidate((8, 8)), Candidate((4, 4)), Candidate((2, 2))
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
        folder.expect([started, seen, untouched])
        folder.update("4-4", folder.record("4-4").model_copy(update={"errors": {1: 0.5}}))
        (folder.path / "8-8" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with search_folder.claim(settings(tmp_path), data) as folder:
        new = Candidate((3, 3))
        for allowed, expected in ((True, [started, seen, new]), (False, [new])):
            known = search_folder.with_earlier(folder.path, folder.records, [new], lambda one, yes=allowed: yes)
            assert known == expected


@pytest.mark.parametrize("change", [{"trials": 3}, {"space": {"depth": [3], "width": [4]}}, {"cost": "parameters"}])
def test_what_enlarges_a_search_may_change(tmp_path: Path, data: Manifest, change: dict[str, Any]) -> None:
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
    with search_folder.claim(settings(tmp_path, **change), data):
        pass


def test_where_and_how_fast_a_search_runs_may_change(tmp_path: Path, data: Manifest) -> None:
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.begin()
    elsewhere = {"cluster": {"address": "auto", "cpus_per_worker": 2}, "tracking": {"uri": "http://localhost:5000"}}
    with search_folder.claim(settings(tmp_path, elsewhere, max_concurrent=3), data):
        pass


def test_a_folder_that_is_not_a_search_is_left_alone(tmp_path: Path, data: Manifest) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis\.tex"), search_folder.claim(settings(tmp_path), data):
        pass
    assert [entry.name for entry in (tmp_path / "test").iterdir()] == ["thesis.tex"]


def test_a_search_that_did_not_begin_leaves_nothing_and_fixes_no_setting(tmp_path: Path, data: Manifest) -> None:
    with pytest.raises(UserError, match="refused"), search_folder.claim(settings(tmp_path), data):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    with search_folder.claim(settings(tmp_path, error="top5"), data) as folder:
        folder.begin()


def test_the_scheduler_of_the_next_session_knows_the_trials_of_the_last(tmp_path: Path, data: Manifest) -> None:
    from ray.tune.schedulers import TrialScheduler

    def decides(error: float) -> str:
        newcomer = SimpleNamespace(trial_id="newcomer")
        with search_folder.claim(settings(tmp_path), data) as folder:
            folder.begin()
            scheduler = build_scheduler(settings(tmp_path, scheduler="asha"), folder.records, {"8-8": 1.0})
        scheduler.on_trial_add(None, newcomer)
        decision: str = scheduler.on_trial_result(None, newcomer, {"epoch": 1, "holdout/top1": 1 - error})
        return decision

    assert decides(0.9) == TrialScheduler.CONTINUE  # no other trial to compare with
    with search_folder.claim(settings(tmp_path), data) as folder:
        folder.update("8-8", Record(status="completed", errors={1: 0.5, 2: 0.1}))
    assert decides(0.6) == TrialScheduler.STOP
    assert decides(0.4) == TrialScheduler.CONTINUE


def test_trials_that_killed_processes_left_running_are_ended(tmp_path: Path) -> None:
    from pipeline.tracking import ledger
    from tests.helpers.tracked import write_run
    from tuning.search_folder import Identity, SearchFolder
    from tuning.tracking import end_trials, note_best

    searched = settings(tmp_path)
    records = {
        "stopped": Record(status="stopped early", errors={1: 0.75}),
        "bad": Record(status="failed", reason="the loss became nan"),
        "done": Record(status="completed", errors={1: 0.5, 2: 0.25}),
    }
    folder = SearchFolder(tmp_path, Identity(id="x", data_digest="d", settings=searched), records)
    for name in (*records, "cut"):
        write_run(tmp_path / name, "sqlite:///unused.db", in_search=True)
    epochs = [EpochRecord(1, 1e9, {"holdout/top1": 0.5, "holdout/top5": 1.0}, 10)]
    history.write(tmp_path / "stopped", epochs)
    history.write(tmp_path / "done", [*epochs, EpochRecord(2, 1e9, {"holdout/top1": 0.75, "holdout/top5": 1.0}, 20)])
    end_trials(folder, [*records, "cut", "not begun"])
    targets = {name: ledger.read_target(tmp_path / name) for name in (*records, "cut")}
    assert {name: target and target.status for name, target in targets.items()} == {
        "stopped": "FINISHED",
        "bad": "FAILED",
        "done": "FINISHED",
        "cut": "KILLED",
    }
    assert targets["stopped"] and targets["stopped"].tags["phasecollapse.outcome"] == "stopped early at epoch 1"
    note_best(folder)
    note_best(folder)
    (best,) = history.step_reader(tmp_path / "best.jsonl").read()
    assert (best.metrics["holdout/top1"], best.metrics["best/epoch"], best.step) == (0.75, 2.0, 30)
