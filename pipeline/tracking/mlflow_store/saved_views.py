"""Saved views of an experiment in MLflow's pages: columns and charts that a newcomer understands.

A view is a tag of the experiment with a fixed id, so it is updated in place. A second tag holds the digest of what was
written last: a view that a user changed or deleted since is left alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
import zlib
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment

PREFIX, WRITTEN = "mlflow.sharedViewState.", "phasecollapse.view."
"""Tags of a view: of MLflow's pages, and the digest of what was written."""
RUNS, SEARCHES, CHARTS = "phasecollapse-runs", "phasecollapse-searches", "phasecollapse-charts"
"""Ids of the views."""

PAGES_FOR_TRAINING = "workflowType=machine_learning"
"""Part of an address by which MLflow shows its pages for training, not those for language models."""

BEST, BEST_TRIAL = "best/validation/top1", "best/holdout/top1"
"""Top-1 accuracy of the best epoch: of runs, and of trials and searches, which validate on held-out training images."""
TRIALS = "tags.`mlflow.parentRunId` LIKE '%'"
TRAINED = "params.`training.epochs` LIKE '%'"
"""Filters of runs: trials of searches; and runs and trials, but not the searches themselves."""
NEWEST, FLAT = "attributes.start_time", "tags.`mlflow.source.name`"
"""Orders of runs: the newest first, in which alone MLflow shows trials below their search; and by what all have in
common, so that trials and runs are beside each other, the newest first."""
DURATION = "duration"
"""Column of the time from start to end, which has no prefix, and which MLflow always shows."""


SECTIONS = {
    "Accuracy": [
        "validation/top1",
        "holdout/top1",
        "train/top1",
        "validation/top5",
        "holdout/top5",
    ],
    "Loss": [
        "step/loss",
        "train/loss",
        "validation/loss",
        "holdout/loss",
    ],
    "Optimization": [
        "step/learning_rate",
        "step/gradient_norm",
    ],
    "Speed": [
        "step/images_per_second",
        "step/waiting_for_data",
    ],
}
"""Sections of charts → the metric of each of their charts, over training steps. MLflow writes a metric's name above its
chart, and leaves out charts of metrics that no shown run has."""


def metric(name: str) -> str:
    """The name of a metric's column."""
    return f"metrics.`{name}`"


def parameter(name: str) -> str:
    """The name of a parameter's column."""
    return f"params.`{name}`"


COLUMNS = {
    metric(BEST): 160,
    metric(BEST_TRIAL): 150,
    metric("network/parameters"): 160,
    metric("network/multiply_adds"): 180,
    DURATION: 100,
    metric("epoch"): 80,
    metric("step/images_per_second"): 180,
    parameter("optimizer.learning_rate"): 170,
    parameter("training.batch_size"): 150,
    parameter("data.image_size"): 140,
}
"""Columns beside the name and the status, in order → width in pixels."""


def write(client: MlflowClient, experiment: Experiment) -> bool:
    """Writes the views that are new or changed into an experiment, except where a user changed or deleted one.

    Returns:
        Whether a view was written.

    Raises:
        MlflowException: the store is unreachable, or refuses.
    """
    changed = False
    for identity, (name, state) in views().items():
        there, written = experiment.tags.get(PREFIX + identity), experiment.tags.get(WRITTEN + identity)
        if (there is None) != (written is None) or (there is not None and _digest(there) != written):
            continue  # a user's
        before = json.loads(there) if there else {}
        content = {"name": name, "state": _encode(state)}
        if {key: before.get(key) for key in content} == content:
            continue
        now = int(time.time() * 1000)
        value = json.dumps({**content, "createdAt": before.get("createdAt", now), "updatedAt": now})
        client.set_experiment_tag(experiment.experiment_id, PREFIX + identity, value)
        client.set_experiment_tag(experiment.experiment_id, WRITTEN + identity, _digest(value))
        changed = True
    return changed


def views() -> dict[str, tuple[str, dict[str, Any]]]:
    """Each view's id → its name in the menu and the state of the page."""
    return {
        RUNS: ("Runs: accuracy, size and time", _state()),
        SEARCHES: (
            "Trials of searches: most accurate first",
            {**_state(), "searchFilter": TRIALS, "orderByKey": metric(BEST_TRIAL)},
        ),
        CHARTS: (
            "Charts: accuracy, loss, speed",
            {**_state(), "searchFilter": TRAINED, "orderByKey": FLAT},
        ),
    }


def _state() -> dict[str, Any]:
    """A page with a table of all runs, newest first, and with charts."""
    return {
        "searchFilter": "",
        "orderByKey": NEWEST,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "FIRST_10_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        **_charts(),
    }


def _charts() -> dict[str, Any]:
    sections: list[dict[str, Any]] = []
    charts: list[dict[str, Any]] = []
    for name, drawn in SECTIONS.items():
        section = f"phasecollapse-{name.lower()}"
        sections.append(
            {
                "uuid": section,
                "name": name,
                "display": True,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
        )
        charts.extend(_line_chart(section, position, key) for position, key in enumerate(drawn))
    return {"compareRunSections": sections, "compareRunCharts": charts}


def _line_chart(section: str, position: int, key: str) -> dict[str, Any]:
    return {
        "uuid": f"{section}-{position}",
        "type": "LINE",
        "metricSectionId": section,
        "metricKey": key,
        "selectedMetricKeys": [key],
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
        "lineSmoothness": 0,
        "useGlobalLineSmoothing": True,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "selectedXAxisMetricKey": "",
        "useGlobalXaxisKey": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "scaleType": "linear",
        "range": {},
        "ignoreOutliers": False,
    }


def _encode(state: dict[str, Any]) -> str:
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state, sort_keys=True).encode())).decode()


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
