"""Claims about folders of the user's whose names are those of this distribution's packages."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_prep.common.distribution import HOME, PACKAGES, check_packages, check_worker_packages
from data_prep.common.errors import UserError

COMMAND = ("-m", "phasecollapse_cli")


def run(folder: Path, arguments: Sequence[str], path: Sequence[Path] = (HOME,)) -> subprocess.CompletedProcess[str]:
    """Runs Python in `folder`, which is in front of its path if `arguments` begin with ``-m``."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def hide(folder: Path, name: str, kind: str) -> Path:
    """Makes a package of the user's (``folder``) or a module (``file``); what Python imports."""
    if kind == "file":
        (folder / f"{name}.py").touch()
        return folder / f"{name}.py"
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    return folder / name


def test_the_packages_of_one_distribution_are_accepted() -> None:
    check_packages()
    check_worker_packages()


@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("name", PACKAGES)
def test_the_command_names_what_hides_a_package(tmp_path: Path, name: str, kind: str) -> None:
    other = hide(tmp_path, name, kind)
    for arguments, path in (([*COMMAND, "--version"], [HOME]), (["-P", *COMMAND, "--version"], [tmp_path, HOME])):
        done = run(tmp_path, arguments, path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: Python imports {other} instead of phasecollapse's package ")
        assert done.stderr.count("\n") == 1, "no traceback"
    unhidden = run(tmp_path, ["-P", *COMMAND, "--version"])
    assert (unhidden.returncode, unhidden.stderr) == (0, ""), "the installed command does not look into the folder"


INTERRUPTED = """
import atexit, os, signal, sys
import phasecollapse_cli

def interrupt():
    os.kill(os.getpid(), signal.{signal})

class WhileImporting:
    def find_spec(self, name, *rest):
        if name == "data_prep.common.distribution":
            interrupt()

{when}
sys.argv = ["phasecollapse", "--version"]
phasecollapse_cli.main()
"""


@pytest.mark.parametrize(
    ("when", "signal", "said"),
    [
        ("sys.meta_path.insert(0, WhileImporting())", "SIGINT", "interrupted: rerun the same command to resume\n"),
        ("atexit.register(interrupt)", "SIGINT", ""),
        ("atexit.register(interrupt)", "SIGTERM", ""),
    ],
)
def test_an_interruption_before_or_after_the_command_shows_no_traceback(
    tmp_path: Path, when: str, signal: str, said: str
) -> None:
    done = run(tmp_path, ["-c", INTERRUPTED.format(when=when, signal=signal)])
    assert (done.returncode, done.stderr) == (130, said)


def test_a_folder_that_is_no_package_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "pipeline").mkdir()
    assert run(tmp_path, [*COMMAND, "--version"]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_ray_is_not_started_in_a_folder_that_would_hide_packages_from_its_workers(
    tmp_path: Path, textures: Path, name: str
) -> None:
    other = hide(tmp_path, name, "folder")
    (tmp_path / "run.yaml").write_text(
        f"data: {{path: {textures}, image_size: 16, flip: false}}\nmodel: {{widths: [4]}}\n"
        "training: {batch_size: 40}\n"
    )
    done = run(tmp_path, ["-P", *COMMAND, "train", "run.yaml", "cluster.workers=1"])
    assert (done.returncode, done.stdout) == (2, "starting 1 worker on Ray\n")
    assert done.stderr == (
        f"error: Ray workers would import {other} instead of phasecollapse's package {HOME / name}: rename the former, "
        f"or run the command from a folder other than {tmp_path} and keep that off PYTHONPATH\n"
    )
    assert not list(tmp_path.glob("runs/*")), "a run that is refused is no run"


SCRIPT = """
import ray
from data_prep.common.errors import UserError
from data_prep.common.parallel import RayExecutor

def double(number, advance):
    return 2 * number

if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        print("result", list(RayExecutor(1).map(double, [21])))
    except UserError as error:
        print("refused:", error)
"""


@pytest.mark.slow
def test_a_ray_worker_says_what_hides_a_package(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert "result [42]" in run(tmp_path, ["script.py"]).stdout
    other = hide(tmp_path, "tuning", "folder")
    done = run(tmp_path, ["script.py"])
    assert f"refused: Python imports {other} instead of phasecollapse's package {HOME / 'tuning'}" in done.stdout


def test_nothing_else_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder further back on the path hides nothing."""
    hide(tmp_path, "tuning", "folder")
    monkeypatch.setattr(sys, "path", [str(HOME), *sys.path, str(tmp_path)])
    check_packages()
    check_worker_packages()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="Ray workers would import"):
        check_worker_packages()
