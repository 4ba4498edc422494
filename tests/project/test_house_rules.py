"""Claims about the code itself: sizes of files, functions and folders, its words, and what tests may look at."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.checkout import ROOT

PACKAGES = ("data_prep", "pipeline", "tuning")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = sorted([*MODULES, *(path for ending in "ch" for path in (ROOT / "data_prep").rglob(f"*.{ending}"))])
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_MODULES = 400, 70, 10

TESTS = sorted((ROOT / "tests").rglob("*.py"))
PUBLIC_UNDERSCORES = {"_replace", "_asdict", "_fields", "_exit", "_dynamo"}
"""Names of Python's and PyTorch's that are documented, though they begin with an underscore."""
LOOK_INTO_RAY = {"tests/data_prep/common/test_ray_internals.py"}
"""Tests of the private parts of Ray that are used."""

WORDS = {
    "whoever": "name who acts",
    "anew": "again",
    "comes to": "equals, amounts to, reaches",
    "leg": "part, session",
    "goes on": "continues, resumes",
    "nobody": "no process, none",
    "tells": "reports, states",
    "told": "given, informed",
    "mend": "fix",
}
"""Words of a private style, and what the field says."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_is_longer_than_a_reader_keeps_in_mind() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    lengths = {
        f"{relative(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


def test_no_folder_has_more_modules_than_its_parts_can_be_named() -> None:
    folders: dict[str, int] = {}
    for path in MODULES:
        if path.name not in ("__init__.py", "__main__.py"):
            folders[relative(path.parent)] = folders.get(relative(path.parent), 0) + 1
    assert {name: modules for name, modules in folders.items() if modules > MOST_MODULES} == {}


@pytest.mark.parametrize("word", WORDS)
def test_the_code_speaks_the_words_of_the_field(word: str) -> None:
    pattern = re.compile(rf"\b{word}(?:s|ed|ing)?\b", re.IGNORECASE)
    using = [
        f"{relative(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert using == [], f"instead of '{word}': {WORDS[word]}"


def private_reads(path: Path) -> list[str]:
    """Private names that a module reads of other objects than its own, or imports from the packages."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names = [node.attr]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            names = [alias.name for alias in node.names if alias.name != "_pixels"]  # the compiled module
        else:
            continue
        found += [
            f"{relative(path)}:{node.lineno} {name}"
            for name in names
            if re.match("_[a-z]", name, re.IGNORECASE) and name not in PUBLIC_UNDERSCORES
        ]
    return found


def test_tests_read_no_private_names() -> None:
    looked_at = [path for path in TESTS if relative(path) not in LOOK_INTO_RAY]
    assert [each for path in looked_at for each in private_reads(path)] == []
