"""WebDataset's tar shards: members KEY.jpg and KEY.cls (or KEY.json with a label) belong together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from pydantic_core import from_json

from data_prep.codec.convert import SUFFIXES
from data_prep.common import storage
from data_prep.common.errors import UserError
from data_prep.common.parallel import Advance, Executor
from data_prep.format.manifest import SPLITS, SplitName
from data_prep.sources.archives import with_links
from data_prep.sources.image_index import HIDDEN_OR_CLUTTER, ImageIndex, IndexedImage, PassedOver, is_clutter
from data_prep.sources.labelled import LabelledImage, files_of_splits, to_index
from data_prep.sources.registry import FolderNames

LABELS = ("cls", "json")


def recognizes(folder: FolderNames) -> bool:
    """Whether a folder, or its subfolder `data`, holds tar files."""
    return any(name.endswith(".tar") for name in folder.with_data)


def open_source(location: str, class_names: Path | str | None = None) -> WebDataset:
    """The shards below a folder."""
    return WebDataset(location, class_names)


class WebDataset:
    """A folder or an address with shards such as NAME-train-0000.tar and NAME-validation-00.tar, read in place.

    Args:
        folder: holds the shards.
        names: classes in the order of their labels, see :func:`data_prep.format.class_names.from_labels`.
    """

    kind = "webdataset"

    def __init__(self, folder: str, names: Path | str | None = None) -> None:
        self._folder = folder if storage.is_remote(folder) else str(Path(folder).resolve())
        self._names = names
        self.location = storage.redact(self._folder)
        self.options: dict[str, int | float | str] = {}

    def list(self, scratch: Path, executor: Executor) -> ImageIndex:
        """The images of both splits.

        Raises:
            UserError: a shard is damaged, or an image has no label.
        """
        passed_over = PassedOver()
        shards = files_of_splits(self._folder, ".tar", passed_over)

        def images_of(split: SplitName) -> Iterator[LabelledImage]:
            for images, others in executor.map(_read_shard, shards[split]):
                for reason, path in others:
                    passed_over.add(reason, path)
                yield from images

        images: dict[SplitName, Iterable[LabelledImage]] = {split: images_of(split) for split in SPLITS}
        return to_index(self.location, images, scratch, self._names, passed_over=passed_over)


def _read_shard(archive: str, advance: Advance) -> tuple[list[LabelledImage], list[tuple[str, str]]]:
    """The images of a shard, and the reasons and paths of other members."""
    others: list[tuple[str, str]] = []
    members = list(with_links(archive, lambda reason, name: others.append((reason, name))))
    keys = [_key(member.name)[0] for member in members]
    if len(set(keys)) < 1 + sum(one != other for one, other in pairwise(keys)):  # links stand at the end
        members.sort(key=lambda member: _key(member.name))
    return list(_pair(archive, iter(members), others)), others


def _key(name: str) -> tuple[str, str]:
    """The key of a member, and what follows it."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}", suffix


def _pair(archive: str, members: Iterator[IndexedImage], others: list[tuple[str, str]]) -> Iterator[LabelledImage]:
    """Images with their labels; the members of a key are consecutive."""
    key: str | None = None
    parts: dict[str, IndexedImage] = {}
    for member in members:
        if is_clutter(member.name):
            others.append((HIDDEN_OR_CLUTTER, member.name))
            continue
        found, suffix = _key(member.name)
        if found != key:
            yield from _label_all(archive, key, parts, others)
            key, parts = found, {}
        parts[suffix.lower()] = member
    yield from _label_all(archive, key, parts, others)


def _label_all(
    archive: str, key: str | None, parts: dict[str, IndexedImage], others: list[tuple[str, str]]
) -> Iterator[LabelledImage]:
    """The image KEY.jpg of a sample; without one, all of its images, such as KEY.left.jpg."""
    images = [suffix for suffix in parts if f".{suffix.rpartition('.')[2]}" in SUFFIXES]
    plain = [suffix for suffix in images if "." not in suffix]
    chosen = plain[:1] or images
    for suffix in chosen:
        yield _label(archive, key, parts, suffix)
    for suffix in [suffix for suffix in images if suffix not in chosen]:
        others.append(("further images of samples that have one of their own", parts[suffix].name))
    if parts and not images:
        others.append(("samples without an image", next(iter(parts.values())).name))


def _label(archive: str, key: str | None, parts: dict[str, IndexedImage], kind: str) -> LabelledImage:
    image, prefix = parts[kind], kind.rpartition(".")[0]
    place = f"{storage.redact(archive)}: {image.name}"
    names = [f"{prefix}.{label}" for label in LABELS if prefix] + [*LABELS]
    suffix = next((name for name in names if name in parts), None)
    if suffix is None:
        raise UserError(f"{place} has no label: it needs a member {(key or '').strip('/')}.cls, or .json with a label")
    text = storage.read_range(archive, parts[suffix].offset, parts[suffix].size)
    try:
        label = _number(text.decode() if suffix.endswith("cls") else from_json(text)["label"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{place} has a label that is not a number: {text[:40]!r}") from None
    shard = archive.partition("?")[0].rsplit("/", 1)[-1]
    return LabelledImage(label, image._replace(name=f"{shard}/{image.name}"))


def _number(label: str | int) -> int:
    """The number of a class: a whole number, or its decimal digits.

    Raises:
        ValueError: it is anything else, such as 1.5, 1_0 or true.
    """
    if isinstance(label, bool) or not re.fullmatch(r"\s*-?[0-9]{1,18}\s*", str(label)):
        raise ValueError(label)
    return int(label)
