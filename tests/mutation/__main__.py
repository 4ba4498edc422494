"""Breaks the code on purpose, one place at a time, and shows that a test notices.

    python -m tests.mutation [WORD …]      with words: only mutations whose description contains one of them

Works in a temporary copy of the checkout. The named tests must pass in it as it is; then each mutation is made alone
(C sources are compiled again), and at least one of its tests must fail. A mutation that survives, or whose text does
not occur exactly once, ends the command with status 1.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tests.helpers.checkout import build_extension, copy_checkout, environment
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
        if any(mutation.is_compiled for mutation in chosen):
            build_extension(copy).check_returncode()
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


def attempt(copy: Path, mutation: Mutation) -> tuple[bool, str]:
    """Makes one mutation, runs its tests, takes it back. Returns whether a test failed, and which one or why not."""
    occurrences = mutation.occurrences(copy)
    if occurrences != 1:
        return False, f"its text occurs {occurrences} times, not once: correct it in tests/mutation/mutations"
    changed = [copy / mutation.file]
    if mutation.is_compiled:
        changed += (copy / mutation.file).parent.glob("*.so")
    before = {path: path.read_bytes() for path in changed}
    changed[0].write_text(changed[0].read_text(encoding="utf-8").replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        if mutation.is_compiled and (built := build_extension(copy)).returncode != 0:
            return False, f"it does not compile: {built.stderr}"
        code, seconds, output = run_tests(copy, mutation.tests)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    if code is None:
        return True, f"the tests hung ({LIMIT_SECONDS} s)"
    failures = [line.split(" - ")[0] for line in output.splitlines() if line.startswith("FAILED ")]
    if code == 1 and failures:  # other codes mean that pytest could not run the tests: that is no test noticing
        return True, f"{failures[0].removeprefix('FAILED ')} ({seconds:.0f} s)"
    if code < 0:
        return True, f"signal {-code} ended the tests ({seconds:.0f} s)"
    return False, f"pytest ended with status {code} ({seconds:.0f} s)"


def run_tests(copy: Path, tests: list[str] | tuple[str, ...]) -> tuple[int | None, float, str]:
    """Runs `tests` in the copy up to the first failure: exit status (None if they hung), seconds, output."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider", "--durations=0", *tests]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None, time.monotonic() - start, ""
    return done.returncode, time.monotonic() - start, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
