"""The command ``phasecollapse``; also ``python -m phasecollapse_cli``.

It has a module of its own, because a user's folder `pipeline/` or `data_prep/` may hide those packages: a module of
this name still starts, and reports it in a sentence.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn


def main() -> None:
    """Runs the command; exits with status 2 and a sentence if other packages hide those of this distribution, and with
    130 after Ctrl-C, also while packages are imported and while Python exits."""
    try:
        _run()
    except KeyboardInterrupt:
        print("interrupted: rerun the same command to resume", file=sys.stderr)
        sys.exit(130)
    finally:
        _exit_at_signals()


def _run() -> None:
    try:
        from data_prep.common.distribution import check_packages
        from data_prep.common.errors import UserError
    except ImportError:
        _refuse(_hidden())
    try:
        check_packages()
    except UserError as error:
        _refuse(str(error))
    from pipeline.cli import main as command

    command.main()


def _exit_at_signals() -> None:
    """From here on a signal ends the process at once: all work is done, and Python would print where it was."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os._exit(130))


def _hidden() -> str:
    """What is imported as `data_prep`, where it is not this distribution's."""
    found = importlib.util.find_spec("data_prep")
    places = [*(found.submodule_search_locations or []), found.origin] if found else []
    if not places or not places[0]:
        return "phasecollapse's package data_prep is not on Python's path: install phasecollapse again"
    return (
        f"Python imports {places[0]} instead of phasecollapse's package data_prep: rename the former, or run the "
        f"command from a folder other than {Path(places[0]).parent} and keep that off PYTHONPATH"
    )


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
