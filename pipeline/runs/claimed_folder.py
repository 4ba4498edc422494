"""A folder in which one process at a time works, such as that of a run or of a search, and the file that identifies it.

The file is written when the work begins: it fixes the settings. A folder whose work did not begin is removed.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import yaml
from filelock import FileLock, Timeout

from data_prep.common.errors import UserError
from data_prep.common.files import explain_os_errors, partials_in, sync_folder, write_atomically
from pipeline.config.registered import STORED
from pipeline.config.section import Section
from pipeline.config.settings_io import END_OF_DOCUMENT, parse_yaml, to_yaml

Identity = TypeVar("Identity", bound=Section)

PROBE_SECONDS = 0.2
"""A lock that is held for longer is that of a process at work; :func:`is_claimed` holds it for a moment."""


@contextmanager
def claim(
    path: Path, lock: str, identity: str, also: tuple[str, ...] = (), *, setting: str, busy: Callable[[], str]
) -> Iterator[None]:
    """Creates a folder if there is none, and locks it for the body.

    Args:
        path: of the folder.
        lock: name of the lock file; the system releases the lock however this process ends.
        identity: name of the file that identifies the folder; without it, the folder is removed after the body.
        also: names of other files that the caller writes before the work begins.
        setting: that names the folder, for errors.
        busy: the error if another process works in the folder.

    Raises:
        UserError: another process works in the folder, or it cannot be written.
    """
    with held(path, lock, setting=setting, busy=busy):
        try:
            yield
        finally:
            if not (path / identity).exists():
                for file in (*(path / name for name in (*also, lock)), *partials_in(path, identity)):
                    file.unlink(missing_ok=True)
                with suppress(OSError):  # it holds files of the user
                    path.rmdir()


@contextmanager
def held(path: Path, lock: str, *, setting: str, busy: Callable[[], str]) -> Iterator[None]:
    """Locks a folder for the body, and creates it if there is none; see :func:`claim`.

    Raises:
        UserError: another process works in the folder, or it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = FileLock(path / lock, timeout=PROBE_SECONDS)
        file.acquire(poll_interval=PROBE_SECONDS / 4)
    except Timeout:
        raise UserError(busy()) from None
    except OSError as error:
        raise UserError(f"{setting}: {path} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        file.release()


def is_claimed(path: Path, lock: str) -> bool:
    """Whether a process works in a folder, see :func:`claim`; writes nothing."""
    try:
        with (path / lock).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # as where there is no lock
        return False
    return False


def write_identity(path: Path, name: str, identity: Section) -> None:
    """Writes the file that identifies a folder, unless it has this content already.

    Raises:
        UserError: it cannot be written.
    """
    file, text = path / name, to_yaml(identity)
    with suppress(OSError, ValueError):
        if file.read_text(encoding="utf-8") == text:
            return
    with explain_os_errors(path):
        for leftover in partials_in(path, name):
            leftover.unlink()
        write_atomically(file, text)
        sync_folder(path.parent)


def parse_identity(text: str, kind: type[Identity]) -> Identity:
    """The content of a file that identifies a folder.

    Raises:
        ValueError: it is empty, truncated or damaged.
    """
    if not text.endswith(END_OF_DOCUMENT):
        raise ValueError("it is empty or truncated")
    try:
        return kind.model_validate(parse_yaml(text), context={STORED: True})
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def first_foreign_file(path: Path, identity: str, *ours: str) -> str | None:
    """Name of a file in a folder without an identity that neither `ours` nor a killed process explains."""
    expected = {*ours, *(file.name for file in partials_in(path, identity))}
    return min((entry.name for entry in path.iterdir() if entry.name not in expected), default=None)
