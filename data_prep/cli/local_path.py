"""The type of command-line arguments that are paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from data_prep.common.errors import UserError


def not_empty(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A callback for arguments that are paths or addresses.

    Raises:
        UserError: the value is an empty text, see :class:`LocalPath`.
    """
    if value == "":
        raise UserError(f"{param.human_readable_name} is empty: name a path or an address")
    return value


class LocalPath(click.Path):
    """A path on this machine. An address such as s3://bucket/x, which would become a folder ``s3:``, is refused, and so
    is an empty text, such as that of a variable that is not set, which would be the current folder."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path.

        Raises:
            UserError: it is empty, or an address.
        """
        name = param and (param.opts[0] if param.opts[0].startswith("-") else param.human_readable_name)
        if value == "":
            raise UserError(f"{name} is empty: name a path")
        if isinstance(value, str) and "://" in value:
            raise UserError(
                f"{name}: {value} is an address: name a path on this machine, and copy from there or to there"
            )
        return super().convert(value, param, ctx)
