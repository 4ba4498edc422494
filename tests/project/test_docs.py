"""Claims about the documentation: its configurations load, its examples run, its tables leave nothing out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
import torch
import yaml

from benchmarks.geometries import GEOMETRIES
from pipeline import models
from pipeline.analysis.model_summary import describe
from pipeline.cli import main
from pipeline.config import settings_io
from pipeline.config.model_schema import ResNetSettings, ScatteringSettings
from pipeline.config.schema import Settings
from pipeline.config.section import Section
from pipeline.launch import launcher
from pipeline.models import nonlinearities, resnet
from pipeline.runs import history
from tests.helpers.checkout import ROOT
from tests.helpers.runs import write_configuration
from tuning.config import SearchSettings

DOCS = ROOT / "docs"
PAGES = (DOCS / "concepts" / "networks.md", DOCS / "development" / "numerics.md")
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """From one heading to the next."""
    return re.split(r"^#+ ", TEXT.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def one_line() -> str:
    return " ".join(TEXT.split())


def settings(block: str) -> Settings:
    return settings_io.resolve(Settings, yaml.safe_load(block), "networks.md")


def test_every_test_that_a_page_names_is_there() -> None:
    pages = {page: page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md")}
    named = {(page.name, path) for page, text in pages.items() for path in re.findall(r"`(tests/[\w/]+\.py)", text)}
    assert len(named) > 30 and [(page, path) for page, path in named if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("block", fenced("yaml"), ids=range(len(fenced("yaml"))))
def test_every_configuration_of_the_document_loads_and_builds(block: str) -> None:
    resolved = settings(block)
    assert resolved.data.classes
    with torch.device("meta"):
        network = models.build(resolved.model, resolved.data.classes, resolved.data.image_size)
    assert models.parameters(network) > 0


def test_the_papers_networks_are_those_that_are_measured() -> None:
    for block, geometry in zip(fenced("yaml")[:2], GEOMETRIES.values(), strict=True):
        resolved = settings(block)
        assert isinstance(resolved.model, ScatteringSettings)
        assert resolved.model.channels == geometry.widths
        assert resolved.model.angles == geometry.angles
        assert resolved.model.first_factorized_block == geometry.first_factorized_block
        assert (resolved.data.image_size, resolved.data.classes) == (geometry.size, geometry.classes)
        with torch.device("meta"):
            millions = models.parameters(geometry.network(skip=False)) / 1e6
        assert f"{millions:.1f} million learned numbers" in one_line()


@pytest.mark.parametrize(
    ("title", "family"),
    [("Scattering networks", ScatteringSettings), ("Residual networks", ResNetSettings)],
)
def test_the_table_has_every_field_and_its_default(title: str, family: type[Section]) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", section(title), re.MULTILINE)
    assert [name for name, _ in rows] == list(family.model_fields)
    for name, shown in rows:
        field = family.model_fields[name]
        if not field.is_required():
            default = {"none": None}.get(shown, yaml.safe_load(shown.strip("`")))
            assert default == (list(field.default) if isinstance(field.default, tuple) else field.default), name


def test_the_table_has_every_operator_and_where_its_parameters_start() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| .* \|([^|]*)\| (?:real|complex) \|$", section("The non-linearities"), re.MULTILINE
    )
    assert [name for name, _ in rows] == list(nonlinearities.NONLINEARITIES)
    for name, shown in rows:
        starts = dict(re.findall(r"(\w) = ([\d.]+)", shown))
        assert {
            key[0].replace("g", "a"): value for key, value in nonlinearities.NONLINEARITIES[name].parameters.items()
        } == {key: float(value) for key, value in starts.items()}
    assert [name for name in resnet.NONLINEARITIES if f"`{name}`" not in section("Residual networks")] == []


@pytest.mark.slow
def test_the_costs_of_the_papers_networks_are_those_counted() -> None:
    sentence = re.search(r"that is ([\d.]+) instead of ([\d.]+) billion.* (\d+) instead of (\d+) million", one_line())
    assert sentence
    counted = []
    for block, unit in zip(fenced("yaml")[1::-1], (1e9, 1e6), strict=True):
        description = describe(settings(block))
        counted += [description.executed / unit, description.necessary / unit]
    assert sentence.groups() == tuple(
        f"{count:.{digits}f}" for count, digits in zip(counted, (1, 1, 0, 0), strict=True)
    )


def test_the_example_runs() -> None:
    names: dict[str, object] = {}
    exec(fenced("python")[0], names)
    logits = names["logits"]
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 10)


def test_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"\]\((\S+\.png)\)", PAGES[0].read_text(encoding="utf-8"))
    assert len(pictures) == 3
    assert all((PAGES[0].parent / picture).stat().st_size < 300_000 for picture in pictures)


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "reference" / "settings" / "index.html").is_file()


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("[gone](nowhere.md) [missing](#anchor)\n", encoding="utf-8")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8")) | {"nav": [{"Home": "index.md"}]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr and "#anchor" in done.stderr


def test_the_reference_pages_are_those_of_the_code() -> None:
    done = subprocess.run([sys.executable, "scripts/reference.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_metrics_of_a_run_are_in_the_reference(textures: Path, tmp_path: Path) -> None:
    file = write_configuration(tmp_path, textures, "cluster.workers=0", "training.epochs=1", "tracking.every_steps=5")
    run = launcher.train(settings_io.load(file), progress=False).folder
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    names = {name for record in (*history.read(run), *history.read_steps(run)) for name in record.metrics}
    assert len(names) > 15
    assert [
        name
        for name in sorted(names)
        if f"`{name}`" not in page.replace("validation/", "SUBSET/")
        and name.replace("validation/", "SUBSET/") not in page
    ] == []


def command_lines() -> list[tuple[str, list[str]]]:
    """Every line of README and docs that gives a phasecollapse command, with its page."""
    found = []
    for page in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "configs").glob("*.yaml"))):
        text = page.read_text(encoding="utf-8")
        blocks = [text] if page.suffix == ".yaml" else re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in "".join(blocks).splitlines():
            words = (
                shlex.split(line.lstrip("# "), comments=True) if "phasecollapse " in line and "'s" not in line else []
            )
            if words[:1] == ["phasecollapse"] and page.name != "cli.md":
                found.append((page.name, words[1:]))
    return found


@pytest.mark.parametrize(
    ("page", "words"), command_lines(), ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_every_command_line_names_a_command_and_options_that_exist(page: str, words: list[str]) -> None:
    command = {point.name: point for point in entry_points(group=main.GROUP)}[words[0]].load()
    if isinstance(command, click.Group):
        command = command.commands.get("".join(words[1:2])) or command.commands["list"]
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    assert {word.partition("=")[0] for word in words[1:] if word.startswith("--")} <= options
    for word in words[1:]:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()
        elif re.fullmatch(r"[a-z]+\.[\w.]+=.*", word, re.DOTALL):
            tree: type[Section] = SearchSettings if words[0] == "tune" else Settings
            assert word.partition("=")[0] in re.findall(
                r"^ +([a-z]+\.[\w.]+) ", settings_io.explain(tree), re.MULTILINE
            )
