"""The one exception that a user is meant to read, and what no message shows."""

import errno
import re

HARMLESS = ("region", "scheme", "endpoint_override", "anonymous", "allow_bucket_creation", "allow_bucket_deletion")
"""Options of addresses that are shown."""
_CREDENTIALS = re.compile(r"(?<=://)(?:[^\s/?]*@|[^\s:/@?]*:[^\s@]*@)")  # keys and passwords may hold slashes, ? and @
_OPTIONS = re.compile(r"(://[^\s?]*)(\?[^\s'\"]+)")
_OPTION = re.compile(r"([?&;])([^=&;]*)=[^&;]*")


class UserError(Exception):
    """An error that the user can correct: one sentence that names the field or file, and the remedy.

    The ``phasecollapse`` command prints its text after ``error:``, without a traceback, and exits with status 2.

    Args:
        sentence: is kept without the secrets of the addresses in it.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(redact(sentence))


class TrainingError(UserError):
    """A network does not train with its own settings: its loss is not finite, or memory is too small for it. Another
    one may train on the same machine and data."""


def redact(text: str) -> str:
    """A location, or a text with locations, without secrets, for messages and manifests.

    Removed are user name and password before a host, and the values of options (after ?), such as the signature of a
    presigned address, but for those of HARMLESS.
    """
    if "://" not in text:
        return text
    return _OPTIONS.sub(lambda found: found[1] + _OPTION.sub(_hidden, found[2]), _CREDENTIALS.sub("", text))


def _hidden(option: re.Match[str]) -> str:
    return option[0] if option[2].lower() in HARMLESS else f"{option[1]}{option[2]}=…"


def count_of(count: int, what: str) -> str:
    """A number with its noun, such as 1 class, or 2,000 classes."""
    ending = "" if count == 1 else "es" if what.endswith("s") else "s"
    return f"{count:,} {what}{ending}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    lines = str(getattr(error, "strerror", None) or error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was too small, that of a GPU or the computer's."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which is imported later than this module
        or "DefaultCPUAllocator" in str(error)
    )


def is_disk_full(error: BaseException) -> bool:
    """Whether no space, or none of the user's quota, is left on a disk."""
    code = getattr(error, "errno", None)
    return code in (errno.ENOSPC, errno.EDQUOT) or "disk is full" in str(error)  # what SQLite says


def printable(text: str, keep: str = "") -> str:
    """Text from outside, such as a file's name, for a line on a terminal: control characters and what is no Unicode are
    shown as escapes, as in ``a\\x1bb``.

    Args:
        keep: control characters that stay.
    """
    return "".join(
        one if one in keep or one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode()
        for one in text
    )
