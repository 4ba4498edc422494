"""Claims about registries: names are found or listed, and packages outside this one add to them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.errors import UserError
from data_prep.common.registry import Registry
from pipeline.metrics.epoch import METRICS


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    registry: Registry[int] = Registry("data.colour")
    registry.register("red", 1)
    registry.register("green", 2)
    assert registry.find("green") == 2
    with pytest.raises(UserError, match=r"^data\.colour is 'blue'; choose one of: red, green; or what an installed"):
        registry.find("blue")
    with pytest.raises(UserError, match=r"red, green \(did you mean 'green'\?\); or .* PHASECOLLAPSE_EXTENSIONS reg"):
        registry.find("gren")
    with pytest.raises(UserError, match=r"^kind is 'blue'; choose what an installed package or a module in PHASE"):
        Registry("kind").find("blue")


def test_a_name_is_registered_once() -> None:
    registry: Registry[int] = Registry("data.colour")
    registry.register("red", 1)
    with pytest.raises(ValueError, match="'red' is registered already"):
        registry.register("red", 2)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("mine", "7"),
        ("absent", "extension absent cannot be imported (No module named 'absent')"),
        ("broken", "extension broken cannot be imported (ZeroDivisionError: division by zero)"),
        ("again", "extension again cannot be imported (ValueError: kind: 'mine' is registered already)"),
    ],
)
def test_a_module_named_in_the_environment_is_imported_before_the_first_lookup(
    tmp_path: Path, module: str, expected: str
) -> None:
    (tmp_path / "kinds.py").write_text(
        "from data_prep.common.registry import Registry\nKINDS = Registry('kind')\n", encoding="utf-8"
    )
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "again.py").write_text("import mine\nmine.KINDS.register('mine', 8)\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text("from kinds import KINDS\nKINDS.register('mine', 7)\n", encoding="utf-8")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from kinds import KINDS; print(KINDS.find('mine'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PHASECOLLAPSE_EXTENSIONS": module, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout + done.stderr


def test_what_has_another_meaning_cannot_be_registered() -> None:
    registry: Registry[int] = Registry("metric", reserved=("loss",))
    with pytest.raises(ValueError, match="metric: 'loss' has another meaning"):
        registry.register("loss", 1)
    assert registry.register("recall", 2) == 2
    for name in ("loss", "top1", "top5", "skipped_images"):
        with pytest.raises(ValueError, match=f"'{name}' has another meaning"):
            METRICS.register(name, lambda logits, labels: logits.sum())
