"""File operations of commands that write data sets: locks, space checks, atomic writes, hashes and error messages."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep.common.errors import UserError, is_disk_full

PARTIAL = ".partial"
"""End of the names of files that are being written."""
MADE_HERE = ".unfinished"
"""File in the folder of a command that has not finished, which shows that the command made the folder."""
BLOCK = 2**23
"""Bytes in a block that is read, hashed and written."""
SPARE = 2**24
"""Bytes that must stay free beside the files to be written, for the growth of the folder itself."""


def format_bytes(count: int) -> str:
    """A number of bytes, such as 1.5 GB."""
    size, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{count} bytes" if unit == "bytes" else f"{size:.3g} {unit}"


@contextmanager
def explain_os_errors(path: Path, resumable: bool = True) -> Iterator[None]:
    """Turns an OSError of the body into a UserError that names the file, the reason and the remedy.

    Args:
        path: file or folder that is being written.
        resumable: whether the command resumes when it is rerun, or starts over.

    Raises:
        UserError: the body raised an OSError.
    """
    try:
        yield
    except OSError as error:
        remedy = "rerun the same command" + (" to resume" if resumable else "")
        if is_disk_full(error):
            raise UserError(f"no space is left on the disk of {path}: free disk space, then {remedy}") from None
        where, reason = error.filename or path, error.strerror or error
        if isinstance(where, str) and Path(where).name.startswith(f".{path.name}."):
            where = path  # what the user named, and not the hidden folder that becomes it
        raise UserError(f"{where} cannot be read or written ({reason}): fix the cause, then {remedy}") from None


def require_space(folder: Path, needed: int, remedy: str) -> None:
    """Checks that the disk of a folder has enough free space.

    Raises:
        UserError: the disk of `folder` has less than `needed` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed and free < needed + SPARE:
        wanted = format_bytes(needed + SPARE)
        raise UserError(f"{folder} has {format_bytes(free)} free, and {wanted} are needed: free disk space, {remedy}")


@contextmanager
def locked(path: Path, busy: str, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock file while the body runs; the system releases it when the process dies.

    Args:
        path: of the lock file, which exists only while it is held.
        busy: error message if another process holds it.
        wait: called before waiting for the other process; without it, `busy` is raised.

    Raises:
        UserError: another process holds the lock, and `wait` is not given.
        OSError: no file can be made there.
    """
    if not os.path.lexists(path):  # where this fails, FileLock would wait, as for a lock that is held
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if wait is None:
            raise UserError(busy) from None
        wait()
        lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: a process that waits for it notices, and creates a new file
        lock.release()


def write_atomically(path: Path, content: bytes | str, *, flush: bool = True) -> None:
    """Replaces a file: at every moment, and after a power failure, it has its old content or the new one.

    Args:
        path: of the file.
        content: text is encoded as UTF-8.
        flush: False leaves out the wait for the disk, for files that are worthless after a power failure.
    """
    with replacing(path, flush=flush) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[BufferedRandom]:
    """Yields a new file, for writing and reading, that gets its name when the body ends, and is removed if it raises.

    Until then its name cannot be guessed, so that no link that was put there is followed, and processes that write the
    same file at the same time do not share it.

    Args:
        flush: as for :func:`write_atomically`.

    Raises:
        OSError: `path` cannot be written, or is a device, a pipe or a socket, which must not be replaced.
    """
    if (kind := _kind(path)) and not (stat.S_ISREG(kind) or stat.S_ISLNK(kind) or stat.S_ISDIR(kind)):
        raise FileExistsError(errno.EEXIST, "It is a device, a pipe or a socket", str(path))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(partial, flags, 0o666), "w+b") as file:
        try:
            yield file
            file.flush()
            if flush:
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    if flush:
        sync_folder(path.parent)


def _kind(path: Path) -> int:
    """The mode of what has this name, links not followed; 0 if there is nothing."""
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def partials_in(folder: Path, name: str | None = None) -> list[Path]:
    """What killed processes have left of :func:`replacing` files in a folder, or the file called `name` alone."""
    pattern = re.compile(rf"\.{re.escape(name) if name else '.+'}\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
    return [entry for entry in folder.iterdir() if pattern.fullmatch(entry.name)]


def replaceable(output: Path) -> Path:
    """Follows the links of an output, and checks that a finished folder can be renamed to it, if it is free.

    To be called before the work, so that nothing is thrown away after it. What :func:`is_free` says is the caller's to
    judge: the output may hold the result of an earlier command.

    Raises:
        UserError: nothing could be renamed to it.
    """
    try:
        output.name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{output} is not in UTF-8: choose another output") from None
    with explain_os_errors(output):
        try:
            found = output.resolve()
            looping = found.is_symlink()
        except RuntimeError:  # Python before 3.13
            looping = True
        if looping:
            raise UserError(f"{output} is a loop of links: remove it, or choose another output")
        if found.is_dir() and is_free(found) and (found == Path.cwd() or _is_mount(found)):
            kind = "the current folder" if found == Path.cwd() else "the mount point of a disk"
            raise UserError(f"{output} is {kind}, which cannot be replaced: name a folder in it, {output / 'dataset'}")
    return found


def is_free(output: Path) -> bool:
    """Whether nothing is at a path, or an empty folder, which a finished one replaces."""
    return not any(output.iterdir()) if output.is_dir() else not output.exists()


def _is_mount(folder: Path) -> bool:
    """Whether a disk, or another folder, is mounted there; that of a bind mount is on the same device."""
    if folder.is_mount():
        return True
    with suppress(OSError):
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return any(_unescaped(line.split()[4]) == str(folder) for line in mounts)
    return False


def _unescaped(path: str) -> str:
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), path)


def unfinished_folder(output: Path, command: str) -> Path:
    """Makes the hidden folder in which a command works on `output`, or takes the one that it left when it was
    interrupted. It is not taken from another command, which has a suffix of its own, nor from a user.

    Args:
        output: the folder that it becomes.
        command: in the present participle, such as preparing; a suffix of the folder's name.

    Raises:
        UserError: there is something else by that name, which might lead elsewhere: a link, a file, or a folder that
            this command of this user has not made.
    """
    path = unfinished_name(output, command)
    with suppress(FileExistsError):
        path.mkdir(parents=True)
        (path / MADE_HERE).touch()
        return path
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"{path} is a link or a file, and not the folder of an interrupted command: remove it")
    if not any(path.iterdir()):  # killed before the mark was there
        (path / MADE_HERE).touch()
    mark = path / MADE_HERE
    if not mark.exists() or mark.is_symlink():
        raise UserError(f"{path} is not the folder of an interrupted command: rename it, or remove it")
    with tempfile.TemporaryFile(dir=path) as own:  # a file system may map owners, as network file systems do
        if os.fstat(own.fileno()).st_uid != found.st_uid:
            raise UserError(f"{path} is a folder of another user, and not that of an interrupted command: remove it")
    return path


def unfinished_name(output: Path, command: str) -> Path:
    """The path of :func:`unfinished_folder`."""
    return output.with_name(f".{output.name}.{command}")


def discard(path: Path) -> None:
    """Removes a file, a link (not what it points to), or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def rename_durably(partial: Path, target: Path) -> None:
    """Renames a complete file or folder. After a power failure, `target` is what it was before, or the new one.

    Args:
        partial: a file, or a folder that holds files only; flushed before it is renamed.
        target: a file is replaced; a folder must not exist.
    """
    if partial.is_dir():
        for file in sorted(partial.iterdir()):
            _sync(file)
        sync_folder(partial)
    else:
        _sync(partial)
    partial.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of files to disk."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot flush a folder
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_regular(path: Path) -> FileIO:
    """Opens a file for reading, unbuffered. A pipe or a device, which could block forever, is refused.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return FileIO(descriptor)
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def hash_file(path: Path, advance: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 of a file, in hexadecimal; `advance` is called with the bytes of each block.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(BLOCK))
    with open_regular(path) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            advance(count)
    return digest.hexdigest()
