"""Claims about the distribution: the wheel that is built from the sdist installs, and works without stock FFCV."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from data_prep.format.manifest import load_manifest
from tests.helpers.checkout import ROOT

pytestmark = pytest.mark.slow

WITHOUT_FFCV = """
import importlib.metadata, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ffcv":
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
version = importlib.metadata.version
def blocked(name):
    if name == "ffcv":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = blocked
from pipeline.cli.main import main
sys.argv[0] = "phasecollapse"
main()
"""


def run(*command: str | Path, folder: Path) -> str:
    """Runs a command in `folder`; its output. Fails with what it printed if it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh environment with the wheel, and with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    programs = folder / "venv" / "bin"
    own = run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder)
    # A path, whose own .pth files are not read: the editable installation of this checkout is not seen.
    (Path(own.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    [wheel] = built.glob("*.whl")
    run(programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, folder=folder)
    return programs


def test_the_sdist_holds_sources_licence_and_no_compiled_module(built: Path) -> None:
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    codec = {path.relative_to(ROOT).as_posix() for path in (ROOT / "data_prep" / "codec").glob("_*.[ch]")}
    assert codec and codec <= names
    assert {"LICENSE", "README.md", "data_prep/format/imagenet_classes.txt"} <= names
    assert not [name for name in names if name.endswith(".so")]


def test_the_wheel_holds_types_data_and_every_module(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = ("data_prep", "pipeline", "tuning")
    modules = {path.relative_to(ROOT).as_posix() for package in packages for path in (ROOT / package).rglob("*.py")}
    assert modules <= names
    data = {"data_prep/format/imagenet_classes.txt", "pipeline/report_page/template.html"}
    assert {f"{package}/py.typed" for package in packages} | data <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_the_installed_command_prepares_and_trains_without_ffcv(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import pipeline; print(pipeline.__file__)", folder=tmp_path)
    assert where.startswith(str(installed.parent))
    assert re.fullmatch(
        r"phasecollapse \d+\.\d+\.\d+\n", run(installed / "phasecollapse", "--version", folder=tmp_path)
    )
    assert "prepare" in run(installed / "phasecollapse", "--help", folder=tmp_path)
    program = (installed / "python", "-c", WITHOUT_FFCV)
    few = ("--train-per-class", "4", "--validation-per-class", "2")
    run(*program, "prepare", "textures", "data", *few, folder=tmp_path)
    assert "ffcv" not in load_manifest(tmp_path / "data").tools
    settings = ("cluster.workers=0", "run.name=one", "training.epochs=1", "training.batch_size=20", "data.path=data")
    (tmp_path / "run.yaml").write_text("data: {image_size: 16, flip: false}\nmodel: {widths: [4]}\n", encoding="utf-8")
    assert "finished: 1 epoch," in run(*program, "train", "run.yaml", *settings, folder=tmp_path)
    assert "top-1" in run(*program, "evaluate", "runs/one", "data", folder=tmp_path)


def test_every_supported_python_has_locked_versions_without_addresses_and_hashes() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    supported = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert len(supported) >= 3
    for version in supported:
        lines = (ROOT / "requirements" / f"constraints-{version}.txt").read_text(encoding="utf-8").splitlines()
        wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; .*)?", line)]
        assert wrong == []
        assert {"torch", "ray", "mlflow", "ffcv", "pyyaml"} <= {line.partition("==")[0] for line in lines}
