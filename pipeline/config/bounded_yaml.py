"""YAML from outside, in bounded time and memory, and quickly: a list of runs reads the settings of each."""

from __future__ import annotations

import functools
from typing import Any

import yaml

LONGEST, MOST_VALUES, DEEPEST = 2**20, 100_000, 100
"""Bytes of a text, values in it, and lists and mappings inside each other."""
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it: eight times as fast."""
_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}


def parse_yaml(text: bytes | str) -> Any:
    """The content of YAML from outside.

    Raises:
        ValueError: it is no text, too long or too deep, has a key twice, or its aliases multiply it without end.
        yaml.YAMLError: it is not valid.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has more than {LONGEST:,} bytes")
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        content = _build(text)
    except _NotPlain:
        content = yaml.load(text, YAML_LOADER)
    remaining, count = [content], 0
    while remaining:
        if (count := count + 1) > MOST_VALUES:
            raise ValueError(f"it has more than {MOST_VALUES:,} values, with its aliases written out")
        inner = remaining.pop()
        remaining += list(inner.values()) if isinstance(inner, dict) else inner if isinstance(inner, list) else []
    return content


class _NotPlain(Exception):
    """The text has aliases, tags, dates, several documents or the like, which PyYAML's loader is for."""


class _Open:
    """A list or a mapping whose end has not come yet."""

    def __init__(self, content: list[Any] | dict[Any, Any]) -> None:
        self.content = content
        self.keys: set[str] | None = None if isinstance(content, list) else set()
        self.value_next = False
        self.key: Any = None

    def takes_key(self) -> bool:
        return self.keys is not None and not self.value_next

    def add(self, value: Any) -> None:
        """Adds an element, a key or a value, whichever comes next."""
        if isinstance(self.content, list):
            self.content.append(value)
        elif self.value_next:
            self.content[self.key] = value
        else:
            self.key = value
        self.value_next = not self.value_next


def _build(text: str) -> Any:
    """The content of a text, in one pass over what libyaml finds in it. What PyYAML's loader would end the process for,
    or would take the last one of in silence, is refused.

    Raises:
        ValueError: the text is too deep, or has a key twice.
        yaml.YAMLError: it is not valid.
        _NotPlain: it is neither, and the loader knows its content.
    """
    top = _Open([])
    opened, plain = [top], True
    for event in yaml.parse(text, YAML_LOADER):
        around = opened[-1]
        if isinstance(event, yaml.ScalarEvent):
            if around.takes_key() and around.keys is not None:
                if event.value in around.keys:
                    line = event.start_mark.line + 1 if event.start_mark else 0
                    raise ValueError(f"it has {event.value} twice, in line {line} again")
                around.keys.add(event.value)
            plain = plain and event.anchor is None and event.tag is None
            try:
                around.add(_scalar(event.value) if event.implicit[0] else event.value)
            except _NotPlain:
                plain = False
                around.add(None)
        elif isinstance(event, yaml.CollectionStartEvent):
            plain = plain and event.anchor is None and event.tag is None and not around.takes_key()
            inner = _Open({} if isinstance(event, yaml.MappingStartEvent) else [])
            around.add(inner.content if plain else None)
            opened.append(inner)
            if len(opened) > DEEPEST + 1:  # the loader is recursive
                raise ValueError(f"it has more than {DEEPEST} lists and mappings inside each other")
        elif isinstance(event, yaml.CollectionEndEvent):
            opened.pop()
        elif isinstance(event, yaml.AliasEvent):
            plain = False
            around.add(None)
    if not plain or not isinstance(top.content, list) or len(top.content) > 1:
        raise _NotPlain
    return top.content[0] if top.content else None


@functools.lru_cache(10_000)
def _scalar(value: str) -> Any:
    """What a text without quotation marks stands for.

    Raises:
        _NotPlain: a date, or part of another mapping.
    """
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, value, (True, False))
    if tag not in _PLAIN:
        raise _NotPlain
    return loader.construct_object(yaml.ScalarNode(tag, value))
