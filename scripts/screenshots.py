"""Makes the pictures of MLflow's pages and of the report in docs/assets again, from small runs that it trains.

    python scripts/screenshots.py

Takes about four minutes on 2 cores; what has finished in a folder beside other temporary files is used again. Needs the
browser that ``make setup`` installs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from playwright.sync_api import sync_playwright

from pipeline.tracking.mlflow_store import saved_views

ROOT = Path(__file__).parent.parent
FOLDER, ASSETS = Path(tempfile.gettempdir()) / "phasecollapse-screenshots", ROOT / "docs" / "assets"
PROGRAM = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'phasecollapse'; from pipeline.cli.main import main; main()",
]
"""The program under its name, which the pages show, from this checkout."""
SEARCH, TRIALS, RUN, OTHER = "widths", ("4-8", "8-16"), "collapse", "identity"
MOST_BYTES = 200_000
WIDTH = 1500
"""Of the browser's window, in pixels."""
TRAIN = {
    "data": {
        "path": str(FOLDER / "textures"),
        "image_size": 32,
        "random_crop": False,
        "flip": False,
        "center_crop": 1.0,
    },
    "model": {"widths": [8, 16], "first_factorized_block": 3, "classifier": "pooled"},
    "optimizer": {"learning_rate": 0.1},
    "training": {"epochs": 8, "batch_size": 32},
    "cluster": {"workers": 1},
    "tracking": {"every_steps": 5},
    "run": {"storage": str(FOLDER / "runs")},
}


def main() -> None:
    """Trains what is missing, and makes the pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    train()
    with pages() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        for name, (show, height) in PICTURES.items():
            page.set_viewport_size({"width": WIDTH, "height": height})
            page.goto("about:blank")
            page.goto(address)
            link(page, SEARCH).wait_for()
            show(page)
            page.wait_for_timeout(2000)  # until what moves has moved
            page.get_by_role("button", name="MLflow Assistant").evaluate("button => button.style.display = 'none'")
            save(page, name)
        for name, scheme in (("report", "light"), ("report-dark", "dark")):
            paper = browser.new_page(viewport={"width": 1100, "height": 1160}, color_scheme=scheme)
            paper.goto((FOLDER / "report.html").as_uri())
            save(paper, name)


def train() -> None:
    """The data set, two runs, a search and the report of a run."""
    run("prepare", "textures", str(FOLDER / "textures"), "--train-per-class", "60", "--validation-per-class", "20")
    (FOLDER / "run.yaml").write_text(yaml.safe_dump(TRAIN), encoding="utf-8")
    held_out = {
        **TRAIN,
        "data": {**TRAIN["data"], "holdout": 0.25},
        "model": {"first_factorized_block": 3, "classifier": "pooled"},
    }
    search = {
        "train": held_out,
        "search": {"name": SEARCH, "space": {"depth": [2], "width": [4, 8]}, "grace_epochs": 8},
    }
    (FOLDER / "search.yaml").write_text(yaml.safe_dump(search), encoding="utf-8")
    run("train", str(FOLDER / "run.yaml"), f"run.name={RUN}")
    run("train", str(FOLDER / "run.yaml"), f"run.name={OTHER}", "model.nonlinearity=identity")
    run("tune", str(FOLDER / "search.yaml"))
    run("report", str(FOLDER / "runs" / RUN), "-o", str(FOLDER / "report.html"))


def run(*arguments: str) -> None:
    """Runs a command of the program."""
    subprocess.run([*PROGRAM, *arguments], cwd=ROOT, check=True)


@contextmanager
def pages() -> Iterator[str]:
    """MLflow's pages during the body; their address."""
    command = [*PROGRAM, "ui", "--storage", str(FOLDER / "runs"), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        found = re.search(r"http://\S+", process.stdout.readline())
        try:
            assert found
            yield found[0]
        finally:
            process.terminate()


def link(page: Any, name: str) -> Any:
    """The link to a run."""
    return page.get_by_role("link", name=name, exact=True)


def view(page: Any, identity: str) -> None:
    """Chooses another view than that of the runs."""
    names = {key: name for key, (name, _) in saved_views.views().items()}
    page.get_by_role("button", name=names[saved_views.RUNS]).click()
    page.get_by_role("menuitem", name=names[identity]).click()


def runs(page: Any) -> None:
    """The table of runs, with the trials of the search."""
    page.locator(".ag-row", has=link(page, SEARCH)).get_by_role("button").first.click()
    link(page, TRIALS[0]).wait_for()
    page.mouse.move(700, 700)


def charts(page: Any) -> None:
    """The charts of runs and trials."""
    view(page, saved_views.CHARTS)
    page.locator("label", has=page.locator("[value=CHART]")).click()
    page.locator(".js-plotly-plot").nth(3).wait_for()


def one_run(page: Any) -> None:
    """The page of a run, with its description."""
    link(page, RUN).click()
    page.get_by_text("Show more").click()


def searched(page: Any) -> None:
    """The page of a search, with its description."""
    link(page, SEARCH).click()
    link(page, "error against cost").wait_for()


def compared(page: Any) -> None:
    """Two trials side by side."""
    view(page, saved_views.SEARCHES)
    link(page, TRIALS[0]).wait_for()
    for row in range(len(TRIALS)):
        page.locator(f'[row-index="{row}"] .ag-checkbox-input').check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Run details").wait_for()
    page.get_by_text("Visualizations").click()  # closes that section
    page.get_by_role("switch").first.click()  # only parameters that differ


PICTURES: dict[str, tuple[Callable[[Any], None], int]] = {
    "pages-runs": (runs, 620),
    "pages-charts": (charts, 1080),
    "pages-run": (one_run, 840),
    "pages-search": (searched, 620),
    "pages-compare": (compared, 1080),
}
"""Name of each picture → what shows it, and the height of the window, in pixels."""


def save(page: Any, name: str) -> None:
    """Writes what the window shows, in 256 colors."""
    file = ASSETS / f"{name}.png"
    page.screenshot(path=str(file))
    with Image.open(file) as picture:
        reduced = picture.convert("RGB").quantize(256)
    reduced.save(file, optimize=True)
    print(f"{file.relative_to(ROOT)}: {file.stat().st_size / 1000:.0f} kB")
    assert file.stat().st_size <= MOST_BYTES


if __name__ == "__main__":
    main()
