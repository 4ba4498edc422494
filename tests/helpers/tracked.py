"""Runs in an MLflow store, and what it holds of them."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.runs.history import EpochRecord
from pipeline.tracking.mlflow_store import run
from pipeline.tracking.mlflow_store.run import Tracker
from pipeline.tracking.mlflow_store.store import Store

RECORDS = [EpochRecord(epoch, 1.7e9 + epoch, {"train/loss": 1 / epoch, "epoch": epoch}) for epoch in (1, 2, 3)]


def open_run(store: Store, identity: str) -> Tracker:
    return run.open_run(
        store,
        "experiment",
        identity=identity,
        name=f"name of {identity}",
        folder=Path("f"),
        parameters={"training.epochs": 3, "model.widths": [8, 8]},
        tags={"color": "blue"},
    )


def stored(store: Store, run_id: str) -> Run:
    return MlflowClient(tracking_uri=store.uri).get_run(run_id)


def points(store: Store, run_id: str, key: str = "train/loss") -> list[tuple[int, float, int]]:
    """(step, value, time in milliseconds) of each stored measurement."""
    found = MlflowClient(tracking_uri=store.uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in found)


EXPECTED = [(record.epoch, 1 / record.epoch, int(record.finished_at * 1000)) for record in RECORDS]
