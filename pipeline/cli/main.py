"""The command ``phasecollapse``: finds its sub-commands by entry point, and reports errors in one sentence."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points, version

import click

from data_prep.common import signals
from data_prep.common.distribution import check_packages
from data_prep.common.errors import UserError, printable, redact
from pipeline.cli import proxies

GROUP = "phasecollapse.commands"
NEWLINE = "\n"
"""Errors of a configuration file may have several lines."""


class Commands(click.Group):
    """Sub-commands of all installed packages; each is imported when it is used."""

    def __init__(self, points: Mapping[str, EntryPoint]) -> None:
        super().__init__(
            name="phasecollapse",
            help="Train and search phase-collapse networks. See `phasecollapse COMMAND --help`.",
            params=[
                click.Option(["--version"], is_flag=True, is_eager=True, callback=_version, help="Show the version.")
            ],
        )
        self._points = points

    def list_commands(self, context: click.Context) -> list[str]:
        """The names of the commands, sorted."""
        return sorted(self._points)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Imports and returns a command; None if there is no such command."""
        if name not in self._points:
            return None
        try:
            command: click.Command = self._points[name].load()
        except ImportError as error:
            return _broken(name, error)
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggests the nearest name for an unknown command."""
        name = arguments[0]
        if not self._points:
            raise UserError("phasecollapse is installed in part, without its commands: install it again")
        if not name.startswith("-") and name not in self._points:
            near = difflib.get_close_matches(name, self._points, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(self.list_commands(context))}"
            raise UserError(f"there is no command '{name}': {hint}")
        return super().resolve_command(context, arguments)


def main() -> None:
    """Runs a command. Exit status: 2 for an error of the user, 130 after Ctrl-C, 1 for a bug (with a traceback)."""
    signals.interrupt_on_stop()
    proxies.except_loopback(os.environ)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text in its encoding
    commands = Commands({point.name: point for point in entry_points(group=GROUP)})
    try:
        check_packages()
        commands.main(prog_name="phasecollapse", standalone_mode=False)
    except UserError as error:
        click.echo(f"error: {printable(str(error), keep=NEWLINE)}", err=True)
        sys.exit(2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        click.echo(f"error: {printable(redact(error.format_message()), keep=NEWLINE)}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: rerun the same command to resume", err=True)
        sys.exit(130)


def _version(context: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked:
        click.echo(f"phasecollapse {version('phasecollapse')}")
        context.exit()


def _broken(name: str, error: ImportError) -> click.Command:
    """Stands in for a command whose package cannot be imported, so that the others still work."""

    def explain() -> None:
        raise UserError(f"command '{name}' cannot be loaded ({error}): install what is missing")

    return click.Command(name, callback=explain, short_help=f"cannot be loaded: {error}")


if __name__ == "__main__":
    main()
