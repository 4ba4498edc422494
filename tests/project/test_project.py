"""Claims about the project as a whole: its configurations, what its parts may need, its documents."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

from pipeline import models
from pipeline.config import settings_io
from pipeline.config.model_schema import ScatteringSettings
from pipeline.config.schema import Settings
from tests.helpers.checkout import ROOT
from tests.helpers.checkpoints import save_checkpoint
from tests.mutation.mutations import MUTATIONS, Mutation

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
COMMANDS = sorted(point.name for point in entry_points(group="phasecollapse.commands"))


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter of this environment."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def run_settings(path: Path) -> Settings:
    if not path.stem.endswith("_search"):
        return settings_io.load(path)
    from tuning.config import load

    return load(path).train


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_loads_and_its_network_is_counted(path: Path) -> None:
    settings = run_settings(path)
    classes, size = settings.data.classes or 10, settings.data.image_size
    with torch.device("meta"):
        network = models.build(settings.model, classes, size, seed=0)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert models.parameters(network) > 0
    assert models.multiply_adds(settings.model, classes, size) > models.parameters(network)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_opens_with_its_command(path: Path) -> None:
    command = "tune" if path.stem.endswith("_search") else "train"
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any(f"phasecollapse {command} configs/{path.name}" in line for line in comment)


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "mlflow", "ffcv"}:
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    ["pipeline.training.loop", "pipeline.models", "pipeline.config.settings_io", "pipeline.training.optimizers"],
)
def test_training_mathematics_needs_neither_ray_nor_mlflow_nor_ffcv(module: str) -> None:
    done = python(f"{BLOCKED}import {module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_trained_network_loads_and_runs_without_ray_mlflow_and_ffcv(tmp_path: Path) -> None:
    network = save_checkpoint(tmp_path / "run" / "checkpoints" / "epoch-00001", ScatteringSettings(widths=(3, 4)))
    pixels = torch.arange(2 * 16 * 16 * 3).remainder(251).to(torch.uint8).view(2, 16, 16, 3)
    code = """
import torch
from pipeline import models
from pipeline.runs import trained_model
pixels = torch.arange(2 * 16 * 16 * 3).remainder(251).to(torch.uint8).view(2, 16, 16, 3)
network = models.build(trained_model.load(sys.argv[1]).settings.model, 3, 16)
network.load_state_dict(trained_model.load(sys.argv[1]).network.state_dict())
with torch.no_grad():
    print(network.eval()(pixels).tolist())
"""
    done = python(BLOCKED + code, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), network(pixels))


def test_the_blocker_blocks() -> None:
    assert "ray is blocked" in python(f"{BLOCKED}import ray").stderr


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_help_is_answered_without_loading_what_is_slow(arguments: list[str]) -> None:
    code = """
import sys
from pipeline.cli.main import main
try:
    main()
finally:
    print("loaded:", *sorted({"torch", "ray", "mlflow", "ffcv", "numba", "matplotlib", "sklearn"} & set(sys.modules)))
"""
    done = python(code, *arguments, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.slow
def test_a_network_is_counted_without_loading_a_compiler() -> None:
    code = """
import sys
from pipeline import models
from pipeline.config.model_schema import ScatteringSettings
print(models.multiply_adds(ScatteringSettings(widths=(3, 4)), 3, 16), {"torch._dynamo", "sympy"} & set(sys.modules))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    network = models.build(ScatteringSettings(widths=(3, 4)), 3, 16)
    assert done.stdout == f"{network.multiply_adds()} set()\n"


def test_every_package_contributes_its_commands() -> None:
    assert [
        *("describe", "evaluate", "export", "inspect", "merge", "predict", "prepare", "register", "report", "runs"),
        *("search", "stage", "sync", "train", "tune", "ui", "verify"),
    ] == COMMANDS
    listing = python("from pipeline.cli.main import main; main()", "--help").stdout
    assert [command for command in COMMANDS if not re.search(rf"^ *{command} ", listing, re.MULTILINE)] == []


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what.replace(" ", "-"))
def test_every_breakage_still_finds_its_place(mutation: Mutation) -> None:
    assert mutation.occurrences(ROOT) == 1, f"'{mutation.old}' must occur once in {mutation.file}"
    assert mutation.new != mutation.old
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file(), f"{file} does not exist"
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(encoding="utf-8"), (
            f"{test} is gone"
        )


def project_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False).stdout.decode()
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_folder_of_one_machine() -> None:
    pattern = re.compile(r"/(?:work|root|home/(?!ubuntu|ray))/|/tmp/(?:w|data)/")
    naming = [
        f"{path.relative_to(ROOT)}: {found.group()}"
        for path in project_files()
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".sh", ""}
        and (found := pattern.search(path.read_text(encoding="utf-8")))
    ]
    assert naming == []


def test_every_path_and_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    made_by_commands = re.compile(r"^(datasets|runs|demo|\.venv)/")
    wrong = []
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        text = document.read_text(encoding="utf-8")
        wrong += [
            f"{document.name}: make {name}" for name in re.findall(r"`make ([a-z-]+)`", text) if name not in targets
        ]
        paths = re.findall(r"`((?:[\w.-]+/)*[\w.-]*(?:/|\.py|\.yaml|\.md|\.sh|\.toml|\.txt))`", text)
        wrong += [
            f"{document.name}: {path}"
            for path in paths
            if ("/" in path or document.parent == ROOT)  # others are often names of files that commands make
            and not made_by_commands.match(path)
            and not any((base / path).exists() for base in (ROOT, document.parent))
        ]
    assert wrong == []
