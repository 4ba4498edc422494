"""Runs the compiled decoder under AddressSanitizer and UndefinedBehaviorSanitizer, on its tests and on damaged files.

    python -m tests.sanitize [--seconds 60] [--seed 0]

Builds the C sources with GCC in a temporary copy of the checkout. The first report ends the command with status 1;
where a damaged file (`python -m tests.fuzz`) caused it, its case is named.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from tests.helpers.checkout import copy_checkout, environment

FLAGS = (
    *("-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=undefined,float-cast-overflow"),
)
TESTS = "tests/data_prep/codec"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize")
    parser.add_argument("--seconds", type=float, default=60, help="of damaged files")
    parser.add_argument("--seed", type=int, default=0, help="of damaged files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sanitize-") as folder:
        copy = Path(folder)
        copy_checkout(copy)
        build(copy)
        variables = sanitized(copy)
        progress = copy / "case"
        fuzz = ["tests.fuzz", f"--seconds={options.seconds}", f"--seed={options.seed}", f"--progress={progress}"]
        # What the sanitizers report goes to standard error as the process ends: pytest must not capture it.
        for arguments in (["pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", TESTS], fuzz):
            print("under the sanitizers:", *arguments, flush=True)
            status = subprocess.run([sys.executable, "-m", *arguments], cwd=copy, env=variables, check=False).returncode
            if status:
                case = f", at case {progress.read_text().strip()}" if progress.exists() else ""
                print(f"{arguments[0]} ended with status {status}{case}")
                return 1
    print("no report")
    return 0


def build(copy: Path) -> None:
    """Compiles the copy's C sources with the sanitizers, in place of the module that came with it."""
    libjpeg = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libjpeg"], capture_output=True, text=True, check=True
    ).stdout
    codec = copy / "data_prep" / "codec"
    module = codec / f"_pixels{sysconfig.get_config_var('EXT_SUFFIX')}"
    module.unlink(missing_ok=True)
    command = ["gcc", "-shared", "-fPIC", *FLAGS, f"-I{sysconfig.get_path('include')}"]
    command += [*map(str, sorted(codec.glob("*.c"))), *shlex.split(libjpeg), "-o", str(module)]
    subprocess.run(command, check=True)


def sanitized(copy: Path) -> dict[str, str]:
    """Variables for Python, which was not built with the sanitizers: their libraries come first."""
    # With libstdc++ there from the start, the sanitizer finds the functions by which PyTorch throws exceptions.
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return {
        **environment(copy),
        "LD_PRELOAD": " ".join(line.strip() for line in libraries),
        # Python keeps what it has until it ends: that is no leak. Memory that is not there is a null pointer, as ever.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # else the sanitizer sees Python's pools instead of its objects
    }


if __name__ == "__main__":
    sys.exit(main())
