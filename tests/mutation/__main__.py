"""Breaks the code on purpose, one place at a time, and shows that a test notices.

    python -m tests.mutation [WORD …]      with words: only mutations whose description contains one of them

Works in a temporary copy of the checkout. The named tests must pass in it as it is; then each mutation is made alone,
and at least one of its tests must fail. A mutation that survives, or whose text does not occur exactly once, ends the
command with status 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tests.helpers.checkout import ROOT
from tests.mutation.mutations import MUTATIONS, Mutation

LIMIT_SECONDS = 600  # a mutation may make a test hang: that is noticed, too


def main(words: list[str]) -> int:
    """Tries the mutations whose description has one of `words` (all, without words) and prints a line for each."""
    console = Console(highlight=False)
    chosen = [m for m in MUTATIONS if not words or any(word in m.what for word in words)]
    if not chosen:
        console.print(f"no mutation's description contains {' or '.join(words)}")
        return 1
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="breakage-") as folder:
        copy = Path(folder)
        copy_checkout(copy)
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        code, seconds, output = run_tests(copy, tests)
        if code != 0:
            console.print(escape(output))
            console.print("[red]the tests fail before anything is broken")
            return 1
        console.print(f"as it is: {len(tests)} test files or tests pass ({seconds:.0f} s)")
        for number, mutation in enumerate(chosen, 1):
            noticed, remark = attempt(copy, mutation)
            survivors += not noticed
            verdict = "[green]noticed " if noticed else "[red]SURVIVED"
            line = escape(f"{mutation.what} ({mutation.file}): {remark}")
            console.print(f"{number:>3}/{len(chosen)} {verdict}[/] {line}", soft_wrap=True)
    console.print(f"{len(chosen) - survivors} of {len(chosen)} breakages were noticed")
    return 1 if survivors else 0


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
    for module in (ROOT / "data_prep" / "codec").glob("_pixels.*.so"):  # built, and therefore ignored
        shutil.copy2(module, target / "data_prep" / "codec" / module.name)
    author = ["-c", "user.name=breakage", "-c", "user.email=breakage@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-q", "-m", "copy"]):  # runs note their commit
        subprocess.run(["git", *command], cwd=target, check=True)


def attempt(copy: Path, mutation: Mutation) -> tuple[bool, str]:
    """Makes one mutation, runs its tests, takes it back. Returns whether a test failed, and which one or why not."""
    if mutation.occurrences(copy) != 1:
        return (
            False,
            f"its text occurs {mutation.occurrences(copy)} times, not once: correct it in tests/mutation/mutations",
        )
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, seconds, output = run_tests(copy, mutation.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    if code is None:
        return True, f"the tests hung ({LIMIT_SECONDS} s)"
    failures = [line.split(" - ")[0] for line in output.splitlines() if line.startswith("FAILED ")]
    if code == 1 and failures:  # other codes mean that pytest could not run the tests: that is no test noticing
        return True, f"{failures[0].removeprefix('FAILED ')} ({seconds:.0f} s)"
    return False, f"pytest ended with status {code} ({seconds:.0f} s)"


def run_tests(copy: Path, tests: list[str] | tuple[str, ...]) -> tuple[int | None, float, str]:
    """Runs `tests` in the copy up to the first failure: exit status (None if they hung), seconds, output."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", "--durations=0", *tests]
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return None, time.monotonic() - start, ""
    return done.returncode, time.monotonic() - start, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
