"""Claims about the views of MLflow's pages: written once, updated in place, left alone where a user changed them."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from mlflow import MlflowClient
from mlflow.entities import Experiment

from pipeline.tracking.mlflow_store import saved_views
from pipeline.tracking.mlflow_store.saved_views import CHARTS, PREFIX, RUNS, SEARCHES
from pipeline.tracking.mlflow_store.store import Store, shown_experiment
from tests.helpers.tracked import open_run


def views(experiment: Experiment) -> dict[str, str]:
    return {key.removeprefix(PREFIX): value for key, value in experiment.tags.items() if key.startswith(PREFIX)}


def state(view: str) -> dict[str, object]:
    compressed = json.loads(view)["state"].removeprefix("deflate;")
    content: dict[str, object] = json.loads(zlib.decompress(base64.b64decode(compressed)))
    return content


def test_views_are_written_updated_in_place_and_left_to_the_user(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    open_run(store, "shown")
    experiment = shown_experiment(store)
    assert experiment
    before = views(experiment)
    assert set(before) == {RUNS, SEARCHES, CHARTS}
    assert state(before[RUNS])["selectedColumns"] == list(saved_views.COLUMNS)
    client = MlflowClient(store.uri)
    assert not saved_views.write(client, experiment), "nothing changed"

    client.set_experiment_tag(
        experiment.experiment_id, PREFIX + SEARCHES, mine := before[SEARCHES].replace("T", "t", 1)
    )
    client.delete_experiment_tag(experiment.experiment_id, PREFIX + CHARTS)
    monkeypatch.setattr(saved_views, "COLUMNS", {saved_views.DURATION: 90})
    open_run(store, "shown")
    after = shown_experiment(store)
    assert after
    assert state(views(after)[RUNS])["selectedColumns"] == [saved_views.DURATION]
    assert json.loads(views(after)[RUNS])["createdAt"] == json.loads(before[RUNS])["createdAt"]
    assert views(after)[SEARCHES] == mine
    assert CHARTS not in views(after)
