"""Claims about what a store gets of a run, with a real SQLite store and hand-written folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.runs import history, paths
from pipeline.tracking import ledger, run_card
from pipeline.tracking.delivery import undelivered
from pipeline.tracking.mlflow_store.store import Store, default_store
from pipeline.tracking.run_delivery import Busy, Missing, RunDelivery
from tests.helpers.tracked import Stored, end, find, rows_of, stored, train, write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """An SQLite store: its tables take seconds to make, so the tests share it."""
    return default_store(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def run(store: Store, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A run that has begun, named after the test."""
    assert store.database
    yield write_run(store.database.parent / request.node.name, store.uri)
    shutil.rmtree(store.database.parent / request.node.name)


def in_store(store: Store, run: Path) -> Stored:
    assert store.database
    return stored(store.database, store.database.parent / "artifacts", run.name)


def test_a_run_has_everything_before_it_is_finished(store: Store, run: Path) -> None:
    delivery = RunDelivery(run)
    train(run, 1)
    delivery.deliver()
    assert in_store(store, run).status == "RUNNING"
    (run / paths.ENVIRONMENT).write_text(json.dumps({"hardware.cpu": "fast"}))
    (run / paths.EVENTS).write_text("a worker failed\n")
    train(run, 2)
    end(run)
    assert delivery.missing() == Missing(14, 21, 2, rest=True)
    delivery.deliver()
    assert not delivery.missing().anything
    there = in_store(store, run)
    assert there.status == "FINISHED"
    assert sorted(there.rows) == sorted(rows_of(run)), "each once, with its time"
    assert there.artifacts == {"settings.yaml", "events.log", "evaluation/evaluation.json"}
    found = find(store, run.name)
    assert found.data.params == {"training.epochs": "3", "model.widths": "[8, 8]"}
    assert {
        "color": "blue",
        "hardware.cpu": "fast",
        "phasecollapse.folder": str(run),
    }.items() <= found.data.tags.items()
    assert (found.info.start_time, found.info.end_time) == (1_700_000_000_000, 1_700_001_000_000)


def test_what_was_sent_and_not_acknowledged_is_stored_once(store: Store, run: Path) -> None:
    train(run, 2)
    end(run)
    RunDelivery(run).deliver()
    before = in_store(store, run)
    (run / paths.DELIVERED).write_text("{torn")
    RunDelivery(run).deliver()
    assert in_store(store, run) == before


def test_a_history_that_begins_again_is_sent_again(store: Store, run: Path) -> None:
    train(run, 2)
    delivery = RunDelivery(run)
    delivery.deliver()
    again = [
        history.EpochRecord(1, 2e9, {"train/loss": 7.0}, 5),
        history.EpochRecord(2, 2e9 + 1, {"train/loss": 8.0}, 10),
    ]
    history.write(run, again)
    delivery.deliver()
    assert rows_of(run) <= set(in_store(store, run).rows)


def test_a_finished_run_that_is_given_more_epochs_runs_again(store: Store, run: Path) -> None:
    train(run, 1)
    end(run)
    RunDelivery(run).deliver()
    target = ledger.read_target(run)
    assert target
    ledger.write_target(run, target.model_copy(update={"status": "RUNNING", "ended_at": None}))
    RunDelivery(run).deliver()
    assert in_store(store, run).status == "RUNNING"
    train(run, 1)
    end(run)
    RunDelivery(run).deliver()
    assert in_store(store, run).status == "FINISHED"
    assert len(in_store(store, run).rows) == len(rows_of(run))


def test_a_run_whose_process_was_killed_is_delivered_by_others(store: Store, run: Path) -> None:
    train(run, 1)
    with FileLock(run / paths.LOCK), pytest.raises(Busy):
        RunDelivery(run, owned=False).deliver()
    assert undelivered(run.parent) == [run]
    RunDelivery(run, owned=False).deliver()
    assert in_store(store, run).status == "KILLED"
    assert undelivered(run.parent) == []


def test_a_run_that_was_deleted_in_the_store_is_stored_again(store: Store, run: Path) -> None:
    from mlflow import MlflowClient

    train(run, 1)
    delivery = RunDelivery(run)
    delivery.deliver()
    client = MlflowClient(store.uri)
    client.delete_run(find(store, run.name).info.run_id)
    RunDelivery(run).deliver()
    assert client.get_metric_history(find(store, run.name).info.run_id, "train/loss")


def test_long_histories_and_many_parameters_are_sent_whole(store: Store, run: Path) -> None:
    target = ledger.read_target(run)
    assert target
    parameters = {f"p{number}": "x" * 9000 for number in range(230)}
    ledger.write_target(run, target.model_copy(update={"parameters": parameters}))
    metrics = {f"m{number}": 1.0 for number in range(12)}
    history.write(run, [history.EpochRecord(epoch, 1e9 + epoch, metrics, epoch) for epoch in range(1, 120)])
    RunDelivery(run).deliver()
    assert len(in_store(store, run).rows) == 119 * 12
    assert find(store, run.name).data.params.keys() == parameters.keys()


def test_a_trial_is_a_child_of_its_search(store: Store, run: Path) -> None:
    trial = write_run(run / "trial", store.uri, name="trial of search", in_search=True)
    train(trial, 1)
    end(trial)
    RunDelivery(trial).deliver()
    assert in_store(store, Path("trial of search")).status == "RUNNING", "its parent is not there yet"
    RunDelivery(run).deliver()
    RunDelivery(trial).deliver()
    found = find(store, "trial of search")
    assert found.data.tags["mlflow.parentRunId"] == find(store, run.name).info.run_id
    assert found.info.status == "FINISHED"


def test_the_card_of_a_search_has_its_table_and_links_to_its_artifacts(store: Store, run: Path) -> None:
    (run / paths.IDENTITY).unlink()  # which a search does not have
    rows = [f"| trial-{number} | 0.5 * |\n" for number in range(run_card.MOST_TRIALS + 2)]
    (run / paths.SEARCH_TABLE).write_text("| trial | error |\n| --- | --- |\n" + "".join(rows))
    RunDelivery(run).deliver()
    found = find(store, run.name)
    card = found.data.tags["mlflow.note.content"]
    page = f"#/experiments/{found.info.experiment_id}/runs/{found.info.run_id}/artifacts/"
    assert f"[error against cost]({page}frontier.png?workflowType=machine_learning)" in card
    assert card.count("| trial-") == run_card.MOST_TRIALS and "The 2 further trials" in card
    assert run_card.ARTIFACT not in card


def test_the_best_epoch_and_the_data_set_are_there(store: Store, run: Path) -> None:
    target = ledger.read_target(run)
    assert target
    dataset = ledger.Dataset(name="shapes", digest="d" * 64, source="/data", contents={"classes": 2, "train": 8})
    ledger.write_target(run, target.model_copy(update={"dataset": dataset}))
    scores = [0.25, 0.75, 0.5]
    history.write(
        run,
        [
            history.EpochRecord(epoch, 1e9 + epoch, {"validation/top1": score, "validation/top5": 1.0}, epoch * 4)
            for epoch, score in enumerate(scores, 1)
        ],
    )
    RunDelivery(run).deliver()
    found = find(store, run.name)
    assert found.data.metrics == {
        "validation/top1": 0.5,
        "validation/top5": 1.0,
        "best/validation/top1": 0.75,
        "best/validation/top5": 1.0,
        "best/epoch": 2.0,
    }
    (entry,) = found.inputs.dataset_inputs
    assert (entry.dataset.name, json.loads(entry.dataset.profile)) == ("shapes", {"classes": 2, "train": 8})


def test_a_folder_of_runs_that_was_moved_keeps_its_store(store: Store, run: Path, tmp_path: Path) -> None:
    train(run, 1)
    end(run)
    RunDelivery(run).deliver()
    there = Path(shutil.copytree(run.parent, tmp_path / "moved"))
    moved = RunDelivery(there / run.name, owned=False)
    moved.deliver()
    assert stored(there / "mlflow.db", there / "artifacts", run.name).status == "FINISHED"
    assert find(default_store(there), run.name).data.tags["phasecollapse.folder"] == str(there / run.name)


def test_a_run_is_the_same_by_a_relative_path(store: Store, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(run, 1)
    end(run)
    RunDelivery(run).deliver()
    monkeypatch.chdir(run.parent)
    assert RunDelivery(Path(run.name), owned=False).missing() == Missing(0, 7)
