"""Where images come from: a source lists the images of each split and hands out the bytes of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from data_prep.manifest import ImageClass

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)


class ImageSource(Protocol):
    """Images of two splits with their classes."""

    kind: Literal["folders", "textures"]
    location: str
    classes: list[ImageClass]
    options: dict[str, int]

    @property
    def digest(self) -> str: ...

    def labels(self, split: Split) -> Sequence[int]: ...

    def describe(self, split: Split, index: int) -> str: ...

    def read(self, split: Split, index: int) -> bytes: ...
