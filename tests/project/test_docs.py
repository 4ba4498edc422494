"""Claims about `docs/models.md`: its configurations load, its example runs, and its tables leave nothing out."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from benchmarks.geometries import GEOMETRIES
from pipeline import models
from pipeline.analysis.model_summary import describe
from pipeline.config import settings_io
from pipeline.config.model_schema import ResNetSettings, ScatteringSettings
from pipeline.config.schema import Settings
from pipeline.config.section import Section
from pipeline.models import nonlinearities, resnet
from tests.helpers.checkout import ROOT

DOCS = ROOT / "docs"
TEXT = (DOCS / "models.md").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def section(title: str) -> str:
    """From one heading to the next."""
    return re.split(r"^#+ ", TEXT.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def one_line() -> str:
    return " ".join(TEXT.split())


def settings(block: str) -> Settings:
    return settings_io.resolve(Settings, yaml.safe_load(block), "docs/models.md")


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
    rows = re.findall(r"^\| `(\w+)` \| .* \|([^|]*)\| (?:real|complex) \|$", section("The operators ρ"), re.MULTILINE)
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


def test_pictures_and_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    anchors = {
        "#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", TEXT, re.M)
    }
    missing = [
        target
        for target in targets
        if not target.startswith("https://") and target not in anchors and not (DOCS / target).is_file()
    ]
    assert missing == []
    assert len([target for target in targets if target.endswith(".png")]) == 3
    assert all(picture.stat().st_size < 300_000 for picture in (DOCS / "images").glob("*.png"))
