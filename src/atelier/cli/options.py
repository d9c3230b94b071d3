"""Groups of commands, and options that several commands take."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from atelier.api import aligned as aligned
from atelier.errors import InputError, shown

if TYPE_CHECKING:
    from atelier.config import Params


class Commands(click.Group):
    """A group whose help shows its commands in the order of their use, and the whole first sentence of each."""

    group_class = type  # of groups within it

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without the limit of click, which cuts a sentence."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, one.get_short_help_str(limit=1000)) for name, one in self.commands.items()])


def with_params(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every stage; the function gets the validated parameters and the workspace."""

    @functools.wraps(function)
    def command(root: Path, params_file: Path, overrides: tuple[str, ...], **arguments: Any) -> None:
        function(**arguments, params=load(root, params_file, overrides), root=root)

    for option in (
        overrides_option,
        click.option(
            "--params",
            "params_file",
            type=Path,
            default="params.yaml",
            show_default=True,
            help="Parameter file, relative to --root.",
        ),
        root_option,
    ):
        command = option(command)
    return command


def stage(function: Callable[..., None]) -> Callable[..., None]:
    """`with_params` for a stage: whom `notify` names is told if it fails."""

    @functools.wraps(function)
    def command(params: Params, root: Path, **arguments: str) -> None:
        from atelier.notify import notified

        with notified(params.notify, " ".join([function.__name__, *arguments.values()]), say):
            function(params=params, root=root, **arguments)

    return with_params(command)


root_option = click.option(
    "--root",
    type=Path,
    default=".",
    show_default=True,
    help="The workspace: data, models and reports lie below it.",
)

overrides_option = click.option(
    "--set",
    "--param",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a parameter for this command; repeatable.",
)


def require_root(root: Path) -> None:
    """The workspace must be a folder."""
    if not root.is_dir():
        raise InputError(f"--root {root}: no such folder")


def load(root: Path, params_file: Path, overrides: tuple[str, ...]) -> Params:
    """Read the parameters of a workspace."""
    from atelier.config import load_params

    require_root(root)
    return load_params(root / params_file, overrides, root)


def say(message: str) -> None:
    """Tell the person one line, on standard error: standard output holds results only."""
    print(shown(message), file=sys.stderr, flush=True)


def show(line: str) -> None:
    """Print a line of a result, on standard output."""
    print(shown(line), flush=True)


def check_alias(context: click.Context, parameter: click.Parameter, alias: str) -> str:
    """Refuse what MLflow does not take for an alias."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", alias) or re.fullmatch(r"v\d+|latest", alias, re.IGNORECASE):
        raise click.BadParameter(f"'{alias}': letters, digits, '-' and '_', a letter first; not 'latest' or 'v1'")
    return alias
