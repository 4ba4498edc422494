"""What a newcomer sees in Chromium after a small search: MLflow's pages with the views of this program, and the report.

The browser is Debian's package `chromium`, driven by Playwright; without them these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.runs import history, paths
from pipeline.tracking.mlflow_store import saved_views

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make setup")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no browser: make setup, or apt-get install chromium"),
]

WAIT_MS = 60_000
PROGRAM = [sys.executable, "-m", "pipeline.cli.main"]
SEARCH, NARROW, WIDE = "widths", "4-8", "8-16"
ASSISTANT = "Ask a question..."
"""The field of the assistant's panel."""


@pytest.fixture(scope="module")
def search(textures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search over two widths that has ended."""
    storage = tmp_path_factory.mktemp("pages") / "runs"
    settings = {
        "train": {
            "data": {
                "path": str(textures),
                "image_size": 32,
                "random_crop": False,
                "flip": False,
                "center_crop": 1.0,
                "holdout": 0.25,
            },
            "run": {"storage": str(storage)},
            "model": {"first_factorized_block": 3, "classifier": "pooled"},
            "optimizer": {"learning_rate": 0.1},
            "training": {"epochs": 3, "batch_size": 16},
            "cluster": {"workers": 1},
            "tracking": {"every_steps": 4},
        },
        "search": {"name": SEARCH, "space": {"depth": [2], "width": [4, 8]}},
    }
    config = storage.with_name("search.yaml")
    config.write_text(yaml.safe_dump(settings))
    subprocess.run([*PROGRAM, "tune", str(config)], check=True, timeout=600)
    return storage / SEARCH


@pytest.fixture(scope="module")
def address(search: Path) -> Iterator[str]:
    """The address that ``phasecollapse ui`` prints."""
    command = [*PROGRAM, "ui", "--storage", str(search.parent), "--port", "0"]
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
    """A page of a browser that has never been here."""
    one = browser.new_page(viewport={"width": 1800, "height": 1000})
    one.set_default_timeout(WAIT_MS)
    yield one
    one.close()


def run_link(page: Any, name: str) -> Any:
    return page.get_by_role("link", name=name, exact=True)


def choose_view(page: Any, shown: str, wanted: str) -> None:
    views = {identity: name for identity, (name, _) in saved_views.views().items()}
    page.get_by_role("button", name=views[shown]).click()
    page.get_by_role("menuitem", name=views[wanted]).click()


def cell(page: Any, row: int, column: str) -> str:
    text: str = page.locator(f'[row-index="{row}"] [col-id="{column}"]').inner_text()
    return text


def test_the_first_page_has_the_search_with_accuracy_size_and_time(address: str, page: Any, search: Path) -> None:
    page.goto(address)
    run_link(page, SEARCH).wait_for()
    assert not run_link(page, WIDE).is_visible(), "trials are below their search"
    wanted = [saved_views.BEST_TRIAL, "network/parameters", "network/multiply_adds", "Duration"]
    headers = [page.locator(".ag-header-cell", has=page.get_by_text(name, exact=True)) for name in wanted]
    for header in headers:
        header.wait_for()
    assert (lefts := [header.bounding_box()["x"] for header in headers]) == sorted(lefts)
    assert re.fullmatch(r"[\d.]+(s|min)", cell(page, 0, saved_views.DURATION))
    page.locator(".ag-row button").first.click()  # expands the search
    run_link(page, WIDE).wait_for()
    run_link(page, NARROW).wait_for()
    top1 = [float(cell(page, row, saved_views.metric(saved_views.BEST_TRIAL))) for row in range(3)]
    assert top1[0] == max(top1[1:]), "the search has the accuracy of its best trial"
    best = [max(one.metrics["holdout/top1"] for one in history.read(search / name)) for name in (NARROW, WIDE)]
    assert sorted(top1[1:]) == pytest.approx(sorted(best))


def test_no_assistant_opens_by_itself(address: str, page: Any) -> None:
    page.goto(address)
    run_link(page, SEARCH).wait_for()
    assert page.get_by_placeholder(ASSISTANT).count() == 0
    page.locator("button[data-assistant-ui]").click()
    page.get_by_placeholder(ASSISTANT).wait_for()


def test_a_trial_has_a_card_charts_and_artifacts(address: str, page: Any) -> None:
    page.goto(address)
    page.locator(".ag-row button").first.click()
    run_link(page, WIDE).click()
    page.get_by_text("Scattering network with collapse, widths 8-16").wait_for()
    page.get_by_role("tab", name="Model metrics").click()
    page.locator(".js-plotly-plot").first.wait_for()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("settings.yaml").first.click()
    page.get_by_text("first_factorized_block: 3").first.wait_for()
    page.get_by_role("tab", name="Overview").click()
    page.get_by_text("Show more").click()
    with page.expect_popup() as opened:
        page.get_by_role("link", name="learning curves").click()
    picture = opened.value.locator(f"img[src*='{paths.CURVES}'], img[src^='blob:']").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100


def test_a_search_has_a_card_with_its_trials(address: str, page: Any) -> None:
    page.goto(address)
    run_link(page, SEARCH).click()
    page.get_by_role("cell", name="2,439,488").wait_for()
    page.get_by_role("link", name="error against cost").wait_for()


def test_views_of_trials_and_charts_are_in_the_menu(address: str, page: Any) -> None:
    page.goto(address)
    choose_view(page, saved_views.RUNS, saved_views.SEARCHES)
    run_link(page, NARROW).wait_for()
    assert not run_link(page, SEARCH).is_visible()
    top1 = [float(cell(page, row, saved_views.metric(saved_views.BEST_TRIAL))) for row in range(2)]
    assert top1 == sorted(top1, reverse=True)
    assert page.get_by_text("AI Gateway").count() == 0, "the pages are those for training"
    choose_view(page, saved_views.SEARCHES, saved_views.CHARTS)
    page.locator("label", has=page.locator("[value=CHART]")).click()
    for section in saved_views.SECTIONS:
        page.get_by_text(re.compile(rf"^{section}\s*\(\d\)$")).first.wait_for()
    page.locator(".js-plotly-plot").nth(3).wait_for()
    for name in (NARROW, WIDE):
        page.get_by_text(f"{name} (holdout/top1)").first.wait_for()


def test_two_runs_are_compared(address: str, page: Any) -> None:
    page.goto(address)
    choose_view(page, saved_views.RUNS, saved_views.SEARCHES)
    run_link(page, NARROW).wait_for()
    for row in range(2):
        page.locator(f'[row-index="{row}"] .ag-checkbox-input').check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    page.get_by_text("model.widths").first.wait_for()
    for widths in ("[4, 8]", "[8, 16]"):
        page.get_by_text(widths, exact=True).first.wait_for()


@pytest.mark.parametrize("names", [[SEARCH], [f"{SEARCH}/{NARROW}", f"{SEARCH}/{WIDE}"]], ids=["search", "trials"])
def test_the_report_opens_without_a_server(search: Path, browser: Any, tmp_path: Path, names: list[str]) -> None:
    report = tmp_path / "report.html"
    subprocess.run([*PROGRAM, "report", *names, "-o", str(report)], cwd=search.parent, check=True)
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        asked: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, problems=problems: problems.append(message.text))
        page.goto(report.as_uri())
        assert page.get_by_role("heading").count() >= 2
        assert page.locator("img, svg").count() >= 1
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut"
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert problems == []
        page.close()
