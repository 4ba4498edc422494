"""Claims about YAML from outside: it means what PyYAML's safe loader says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.config.bounded_yaml import parse_yaml
from tests.helpers.checkout import ROOT

TEXTS = [
    "",
    "# nothing",
    "...",
    "1",
    "a",
    "[1, 2.5, 1e3, 1.0e+3, .inf, 0x1F, 0o17, 017, 1_000, 12:30, +1, -0]",
    "[true, no, On, null, ~, '', 'true', \"1\", Null, y]",
    "{a: 1, 'b': {c: [1, [2, {d: 3}], []], e: {}}, 3: x, null: y, 1.5: z, true: t}",
    "- a\n-\n- - b\n  - c\n- d: 1\n  e:\n",
    "a: |\n  several\n  lines\nb: >\n  one\n  line\nc: plain\n  text\n",
    "a: ä€😀\n",
    "1: a\n0x1: b\n",
    "date: 2024-01-01\nmoment: 2001-12-14t21:59:43.10-05:00\n",
    "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}\n",
    "a: !!str 1\nb: ! 2\nc: !!float 3\nd: !!set {x, y}\n",
    "a: =\n",
    "a: <<\n",
    "? [1]\n: 2\n",
    "--- 1\n",
    "--- a\n--- b\n",
    "a: !!python/object:os.system x\n",
    "a: [1\n",
    "a: b: c\n",
    "\ta: 1",
    "? a\n? b\n",
]


def outcome(load: object, text: str) -> tuple[str, object]:
    """What a loader makes of a text: the content, or the kind of its error."""
    try:
        return "content", repr(load(text))  # type: ignore[operator]
    except (yaml.YAMLError, TypeError) as error:
        return "error", type(error)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_means_what_the_safe_loader_says(text: str) -> None:
    assert outcome(parse_yaml, text) == outcome(yaml.safe_load, text)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_configurations_mean_what_the_safe_loader_says(file: Path) -> None:
    assert parse_yaml(file.read_bytes()) == yaml.safe_load(file.read_text(encoding="utf-8"))
