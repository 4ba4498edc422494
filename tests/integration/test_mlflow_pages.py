"""MLflow's pages as a newcomer sees them, in Chromium: the runs of a small search, with the views of this program.

The browser is Debian's package `chromium`, driven by Playwright; without them these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.tracking.mlflow_store.store import connect, default_store, find_or_create_experiment

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install 'phasecollapse[browser]'"
)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: apt-get install chromium"),
]

WAIT_MS = 60_000
ACCURACIES = {"narrow": 0.62, "wide": 0.87}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that ``phasecollapse ui`` prints, of a store with a search of two trials."""
    storage = tmp_path_factory.mktemp("runs")
    store = default_store(storage)
    client = connect(store)
    experiment = find_or_create_experiment(client, store, "phasecollapse").experiment_id
    parent = client.create_run(experiment, run_name="search").info.run_id
    client.log_metric(parent, "best/holdout/top1", max(ACCURACIES.values()))
    for name, accuracy in ACCURACIES.items():
        run = client.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name=name).info.run_id
        client.log_param(run, "optimizer.learning_rate", 0.1)
        for epoch in (1, 2, 3):
            client.log_metric(run, "holdout/top1", accuracy * epoch / 3, step=20 * epoch)
            client.log_metric(run, "best/holdout/top1", accuracy * epoch / 3, step=20 * epoch)
        client.log_text(run, "training.epochs: 3\n", "settings.yaml")
        client.set_terminated(run)
    client.set_terminated(parent)
    command = [sys.executable, "-m", "pipeline.cli.main", "ui", "--storage", str(storage), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    one = browser.new_page(viewport={"width": 1800, "height": 1000})
    one.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")  # its panel
    one.set_default_timeout(WAIT_MS)
    yield one
    one.close()


def test_a_newcomer_finds_a_search_its_trials_their_curves_and_files(address: str, page: Any) -> None:
    page.goto(address)
    page.get_by_role("link", name="search", exact=True).wait_for()
    page.get_by_text("best/holdout/top1").first.wait_for()
    page.get_by_text("Runs: accuracy, size and time").first.wait_for()
    assert not page.get_by_role("link", name="wide", exact=True).is_visible(), "children are below their parent"
    page.locator(".ag-row button").first.click()  # expands the search
    page.get_by_role("link", name="wide", exact=True).click()
    page.get_by_text("optimizer.learning_rate").first.wait_for()
    page.get_by_role("tab", name="Model metrics").click()
    page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("settings.yaml").first.click()
    page.get_by_text("training.epochs: 3").first.wait_for()
