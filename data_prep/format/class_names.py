"""Classes of a data set: index, id and human-readable name, in the same form for every source."""

from __future__ import annotations

import difflib
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from data_prep.common.errors import UserError, count_of, printable
from data_prep.format.manifest import ImageClass

IMAGENET = "imagenet"
"""Word that stands for the table of ImageNet's 1,000 classes in this package."""

LONGEST_NAME = 1000
"""Characters of an id or a name: ImageNet's longest has 121."""

MOST_BYTES = 64 * 2**20
"""Bytes of a file of names."""


def number(ids: Iterable[str], known: dict[str, str] | None = None) -> list[ImageClass]:
    """Classes in the order of `ids`, which are numbered 0, 1, 2, …; a name is `known`, or ImageNet's, or the id.

    Where two classes have the same name, such as ImageNet's cranes, the id stands behind it.
    """
    names = {**imagenet(), **(known or {})}
    named = [(one, names.get(one, one)) for one in ids]
    times = Counter(name for _, name in named)
    return [
        ImageClass(index=index, id=one, name=f"{name} ({one})" if times[name] > 1 else name)
        for index, (one, name) in enumerate(named)
    ]


@functools.cache
def imagenet() -> dict[str, str]:
    """The names of ILSVRC2012's classes by WordNet id, in the order of their numbers."""
    lines = (
        resources.files("data_prep.format").joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    )
    return dict(line.split(maxsplit=1) for line in lines if not line.startswith("#"))


def find(classes: Sequence[ImageClass], wanted: str) -> ImageClass:
    """The class of this id, name or index, the id before the others; in another case where none is written so.

    Raises:
        UserError: there is none, or several have this name.
    """
    for written in (str, str.casefold):
        for key in ("id", "name", "index"):
            for each in classes:
                if written(str(getattr(each, key))) == written(wanted):
                    return each
    if several := [one.id for one in classes if one.name.casefold() == f"{wanted} ({one.id})".casefold()]:
        raise UserError(f"{wanted} is the name of several classes: name one by its id, {' or '.join(several)}")
    known = [text for each in classes for text in (each.id, each.name)]
    close = difflib.get_close_matches(wanted, known, 3)
    hint = f": did you mean {', '.join(close)}?" if close else f": give an id, a name or an index, such as {known[0]}"
    if with_comma := next((text for text in known if wanted in map(str.strip, text.split(",")) and "," in text), None):
        hint = f""": a name with a comma stands in quotes, as in --classes '"{with_comma}"'"""
    raise UserError(f"there is no class {wanted}{hint}")


def from_labels(count: int, class_names: Path | str | None, given: Sequence[str] | None = None) -> list[ImageClass]:
    """Classes of a source whose labels are numbers 0, 1, 2, …

    Args:
        count: the largest number and one more.
        class_names: file of lines `id name` in the order of the numbers, or the word imagenet.
        given: names stored with the images; they become the ids, except for those of ImageNet's classes in order,
            which get ImageNet's ids.

    Raises:
        UserError: there are fewer names than numbers.
    """
    if class_names:
        known = read_names(class_names)
        if len(known) < count:
            remedy = "name a file of your own" if str(class_names) == IMAGENET else "add the others"
            there = count_of(len(known), "class")
            raise UserError(f"{class_names} has {there}, but labels go up to {count - 1}: {remedy}")
        return number(known, known)
    if given:
        return number(imagenet() if _are_imagenets(given) else given)
    return number([str(label) for label in range(count)])


def _are_imagenets(names: Sequence[str]) -> bool:
    """Whether names, or their first synonyms, are those of ImageNet's 1,000 classes in order, up to a few spellings."""
    table = list(imagenet().values())
    if len(names) != len(table):
        return False
    same = sum(ours.lower() in theirs.lower() for ours, theirs in zip(table, names, strict=True))
    return same > 0.9 * len(table)


def read_names(path: Path | str) -> dict[str, str]:
    """The names in a file of lines `id name`, by id, or ImageNet's. Of synonyms between commas, the first is taken.

    Raises:
        UserError: the file cannot be read.
    """
    if str(path) == IMAGENET:
        return imagenet()
    try:
        with Path(path).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UserError(f"class names {path} cannot be read: {error.strerror}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"class names {path} have more than {MOST_BYTES // 2**20} MiB: name a file of lines 'id name'")
    return parse_names(content, str(path))


def parse_names(content: bytes, place: str) -> dict[str, str]:
    """The names in the content of such a file; `place` names it in errors.

    Raises:
        UserError: it is no text in UTF-8, gives an id two names, or a name is too long or holds a NUL.
    """
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"class names {place} are not in UTF-8: convert the file") from None
    pairs = [line.split(maxsplit=1) for line in lines if not line.startswith("#")]
    names: dict[str, str] = {}
    for one, named in (pair for pair in pairs if len(pair) == 2):
        name = named.split(",")[0].strip()
        if max(len(one), len(name)) > LONGEST_NAME or "\0" in one + name:
            raise UserError(
                f"class names {place}: {printable(one[:40])} has an id or a name of more than {LONGEST_NAME} "
                "characters, or with a NUL in it: shorten it"
            )
        if names.setdefault(one, name) != name:
            raise UserError(f"class names {place} has two names for {printable(one)}: remove one of the lines")
    return names
