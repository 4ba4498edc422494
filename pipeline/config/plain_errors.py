"""Errors of pydantic in plain words: what a setting must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "literal_error": "must be {expected}",
    "union_tag_invalid": "must be {expected}",
    "union_tag_not_found": "must name its family",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must have at least {min_length} items",
    "too_long": "must have at most {max_length} items",
    "dict_type": "must be a section, with settings of its own",
    "model_type": "must be a section, with settings of its own",
    "model_attributes_type": "must be a section, with settings of its own",
}
"""By the type of the error; the names in braces are pydantic's."""
PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "letters, digits, dots, hyphens and underscores, and begin with a letter or digit",
    r"^[0-9a-f]{8,64}$": "8 to 64 of the digits 0 to 9 and a to f",
}


def requirement(problem: Mapping[str, Any]) -> str:
    """What the value of a setting must be, given one of the errors of pydantic's ValidationError."""
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "string_type" and isinstance(problem["input"], int | float):
        return "it is text: put it into quotes"  # YAML makes a number of 20240101, and true of on
    if kind == "string_pattern_mismatch":
        return f"must consist of {PATTERNS[context['pattern']]}"
    if kind in WORDS:
        expected = str(context.get("expected") or context.get("expected_tags", "").replace(", ", " or "))
        return WORDS[kind].format(**{**context, "expected": expected})
    words: str = problem["msg"]
    return words.removeprefix("Value error, ")
