"""This checkout, and copies of it that a program may change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CODEC = Path("data_prep", "codec")


def copy_checkout(target: Path) -> None:
    """Copies the files that git knows, and new ones that it does not ignore, as they are in the working tree."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    for module in (ROOT / _CODEC).glob("_pixels.*.so"):  # built, and therefore ignored
        shutil.copy2(module, target / _CODEC / module.name)
    author = ["-c", "user.name=copy", "-c", "user.email=copy@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "copy"]):  # runs note their commit
        subprocess.run(["git", *command], cwd=target, check=True)


def build_extension(copy: Path) -> subprocess.CompletedProcess[str]:
    """Compiles the C sources of a copy; its status is 0 if they compile."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    return subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, check=False)


def environment(copy: Path) -> dict[str, str]:
    """The variables with which Python imports a copy's packages, and writes nothing beside them."""
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
