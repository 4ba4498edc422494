"""Configuration files and overrides → the settings tree, and back.

A configuration file is YAML with the sections of :class:`pipeline.config.schema.Settings`; the command line overrides
single fields with ``section.field=value``.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from data_prep.common.errors import UserError, redact
from pipeline.config.bounded_yaml import LONGEST, parse_yaml
from pipeline.config.plain_errors import requirement
from pipeline.config.registered import STORED, NotRegistered, Registered
from pipeline.config.schema import Settings
from pipeline.config.section import MAY_CHANGE, Section

END_OF_DOCUMENT = "...\n"
"""End of a complete file; a file without it was truncated."""

Tree = TypeVar("Tree", bound=Section)


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping safely.

    Raises:
        UserError: the file is missing, is not YAML (the line is named), or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = parse_yaml(file.read(LONGEST + 1))
    except FileNotFoundError:
        raise UserError(f"configuration file {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"configuration file {path} is a folder: name a file, such as its run.yaml") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"configuration file {path} cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        raise UserError(f"configuration file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"configuration file {path} must hold sections such as 'data:', not a {type(content).__name__}")
    return content


def override(content: dict[str, Any], assignments: Sequence[str], tree: type[Section] | None = None) -> dict[str, Any]:
    """A copy of `content` with the ``section.field=value`` of each assignment applied; values are read as YAML.

    Args:
        tree: of the settings; what its fields of text are given stays as it was written, such as run.name=20240101.

    Raises:
        UserError: an assignment is not of that form, or goes through something that is not a section.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.split(".")
        shown = redact(assignment)
        if not equals or not all(keys):
            raise UserError(f"override '{shown}' is not of the form section.field=value")
        try:
            value = parse_yaml(text)
        except (yaml.YAMLError, ValueError):  # also of what looks like a date, but is none
            if not (tree and _takes_text(tree, keys)):
                raise UserError(f"override '{shown[:200]}': the value is not valid YAML") from None
            value = text
        if tree and value is not None and not isinstance(value, str) and _takes_text(tree, keys):
            value = text
        section = result
        for key in keys[:-1]:
            inner = section.get(key)
            if inner is None:
                inner = {}
            if not isinstance(inner, dict):
                raise UserError(f"override '{shown}': '{key}' is a value, not a section")
            section[key] = dict(inner)
            section = section[key]
        section[keys[-1]] = value
    return result


def _takes_text(tree: type[Section], keys: Sequence[str]) -> bool:
    """Whether the field of these names holds text, and nothing else."""
    field = tree.model_fields.get(keys[0])
    if field is None:
        return False
    if len(keys) > 1:
        return any(_takes_text(section, keys[1:]) for section in sections(field.annotation).values())
    kinds = _kinds(field.annotation)
    return str in kinds and kinds <= {str, NoneType}


def _kinds(annotation: Any) -> set[Any]:
    """The types that a field may have, without what annotates them."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)}
    return {annotation}


def resolve(
    tree: type[Tree], content: Mapping[str, Any], source: str, assignments: Sequence[str] = (), *, stored: bool = False
) -> Tree:
    """Checks `content` against the tree `tree`.

    Args:
        source: names the content in errors.
        assignments: which :func:`override` applied to it; an error in what one of them set names it instead.
        stored: the content was resolved before, with names that need not be registered here.

    Raises:
        UserError: names each wrong field, its value and what is allowed.
    """
    try:
        return tree.model_validate(content, context={STORED: stored})
    except ValidationError as error:
        problems = "\n".join(_explain(each, tree, source, assignments) for each in error.errors())
        raise UserError(problems) from None


def load(path: Path, assignments: Sequence[str] = (), *, stored: bool = False) -> Settings:
    """The settings of a configuration file, with overrides.

    Args:
        assignments: the overrides.
        stored: see :func:`resolve`.

    Raises:
        UserError: see :func:`load_yaml`, :func:`override` and :func:`resolve`.
    """
    content = load_yaml(path)
    if "search" in content and "train" in content:
        raise UserError(f"{path} describes a search, not a run: phasecollapse tune {path}")
    return resolve(Settings, override(content, assignments, Settings), str(path), assignments, stored=stored)


def explain(tree: type[Section], prefix: str = "") -> str:
    """Every setting of a tree, with its default, meaning and choices, as text for a terminal."""
    lines = []
    for name, field in tree.model_fields.items():
        path, words = f"{prefix}{name}", " ".join((field.description or "").split())
        if families := sections(field.annotation):
            for family, section in families.items():
                title = " ".join((section.__doc__ or "").split())
                which = f" (family {family})" if family else ""
                lines += ["", f"{path}{which}: {title}", explain(section, f"{path}.")]
            continue
        lines.append(f"  {path} (required)" if field.is_required() else f"  {path} = {json.dumps(field.default)}")
        if names := choices(field):
            words += f" {'Any' if get_origin(field.annotation) is tuple else 'One'} of: {', '.join(names)}."
        if MAY_CHANGE in field.metadata:
            words += " May change when a run is resumed."
        lines += textwrap.wrap(words, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def may_change(tree: type[Section]) -> frozenset[str]:
    """The dotted paths of all settings of a tree that may change when a run is resumed."""
    return annotated(tree, MAY_CHANGE)


def annotated(tree: type[Section], mark: object, prefix: str = "") -> frozenset[str]:
    """The dotted paths of all settings of a tree that are annotated with `mark`."""
    paths: set[str] = set()
    for name, field in tree.model_fields.items():
        if mark in field.metadata:
            paths.add(f"{prefix}{name}")
        for section in sections(field.annotation).values():
            paths |= annotated(section, mark, f"{prefix}{name}.")
    return frozenset(paths)


def paths(tree: type[Section], prefix: str = "") -> list[str]:
    """The dotted paths of all settings of a tree."""
    found = []
    for name, field in tree.model_fields.items():
        inner = sections(field.annotation)
        found += [path for section in inner.values() for path in paths(section, f"{prefix}{name}.")]
        found += [] if inner else [f"{prefix}{name}"]
    return list(dict.fromkeys(found))


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The names that a field, or each item of a list, may have as its value; empty if its values are not names."""
    of_items = [part for item in get_args(field.annotation) for part in getattr(item, "__metadata__", ())]
    for annotation in (*field.metadata, *of_items):
        if isinstance(annotation, Registered):
            return annotation.names
    names = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    return tuple(map(str, names)) if len(names) > 1 else ()  # a family's own name is no choice


def to_yaml(settings: Section) -> str:
    """The whole resolved tree; :func:`load` reads it back to an equal one. It ends with YAML's END_OF_DOCUMENT."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, explicit_end=True)


def flatten(settings: Section) -> dict[str, Any]:
    """The tree as ``{"section.field": value}``."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {prefix: value}
        leaves: dict[str, Any] = {}
        for key, inner in value.items():
            leaves |= walk(f"{prefix}.{key}" if prefix else key, inner)
        return leaves

    return walk("", settings.model_dump(mode="json"))


def differences(before: Section, after: Section, ignored: Collection[str] = ()) -> list[str]:
    """``section.field: old → new`` for each field in which two trees differ, except the `ignored` ones."""
    old, new = flatten(before), flatten(after)
    # Families of networks have different fields: then model.family differs, too.
    both = [key for key in new if key in old and key not in ignored]
    return [f"{key}: {old[key]} → {new[key]}" for key in both if old[key] != new[key]]


def sections(annotation: Any) -> dict[str, type[Section]]:
    """The sections that a field may hold, by family; the family is empty if there is one only. Empty for a value."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {"": annotation}
    members = [(get_args(member) or (None,))[0] for member in get_args(annotation)]
    if not all(isinstance(member, type) and issubclass(member, Section) for member in members):
        return {}
    return {get_args(member.model_fields["family"].annotation)[0]: member for member in members}


def _section_by_name(annotation: Any) -> type[Section] | None:
    """The section of which a field holds several, by names that the user gives them; None if it holds none."""
    if get_origin(annotation) is not dict:
        return None
    kind = get_args(annotation)[1]
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _locate(place: Sequence[str | int], tree: type[Section]) -> tuple[str, type[Section]]:
    """The dotted path of a field, and its section; `place` is pydantic's location, which also names families."""
    path, section, families, by_name = [], tree, {"": tree}, None
    for part in place:
        if part in families and len(families) > 1:
            section = families[str(part)]
            continue
        path.append(str(part))
        if by_name is not None:  # part is a name of the user's
            section, by_name = by_name, None
            continue
        field = section.model_fields.get(str(part))
        families = sections(field.annotation) if field else {}
        by_name = _section_by_name(field.annotation) if field else None
        section = families.get("", section)
    return ".".join(path), section


def _suggestion(path: str, tree: type[Section], section: type[Section]) -> str:
    """The nearest setting to an unknown one, of its section or of the whole tree; otherwise those of its section."""
    prefix, _, name = path.rpartition(".")
    known = {field: f"{prefix}.{field}".lstrip(".") for field in section.model_fields}
    near = difflib.get_close_matches(name, known, 1, 0.75)
    everywhere = [one for one in paths(tree) if one.rpartition(".")[2] == name and one != path]
    if near or everywhere:
        return f": did you mean '{known[near[0]] if near else everywhere[0]}'?"
    return f"; allowed here: {', '.join(section.model_fields)}"


def _explain(problem: Any, tree: type[Section], source: str, assignments: Sequence[str]) -> str:
    path, section = _locate(problem["loc"], tree)
    message, within = requirement(problem), f"{path}." if path else ""
    for assignment in assignments:
        key = assignment.partition("=")[0]
        named = rf"(?<![\w.]){re.escape(key.removeprefix(within))}(?![\w.])"  # a section's message names its fields
        if f"{path}.".startswith(f"{key}.") or (key.startswith(within) and re.search(named, message)):
            source = f"override '{assignment}'"
    if problem["type"] == "extra_forbidden":
        return f"{source}: unknown setting '{path}'{_suggestion(path, tree, section)}"
    if problem["type"] == "missing":
        return f"{source}: setting '{path}' is missing"
    if problem["type"] == "union_tag_invalid":
        path, shown = f"{path}.family", problem["ctx"]["tag"]
    else:
        shown = problem["input"]
    if problem["type"] == "value_error" and not isinstance(problem["ctx"]["error"], NotRegistered):
        return f"{source}: {path + ': ' if path else ''}{message}"  # it names the fields itself
    return f"{source}: setting '{path}' is {shown!r}: {message}"
