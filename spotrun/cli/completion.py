"""Shell completion: the script that `spotrun completion SHELL` prints, and what the shell asks through it.

click's own completion over the tables of commands and flags; nothing is imported that launches anything.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click
from click.shell_completion import get_completion_class, shell_complete

from spotrun.cli.commands import COMMANDS
from spotrun.cli.flags import OWN_FLAGS, TORCH_FLAGS

VARIABLE = "_SPOTRUN_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


class _Spotrun(click.Group):
    """As the shell sees it. Without a command it launches a script, so it takes the flags of `run` as well."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, _, function = COMMANDS[name].target.partition(":")
        if name == "run":
            return click.Command("run", params=[*_flags(), click.Argument(["script"], type=click.Path(), nargs=-1)])
        found: Any = getattr(importlib.import_module(module), function)
        return found if isinstance(found, click.Command) else click.Command(name, help=COMMANDS[name].help)


def _flags() -> list[click.Parameter]:
    return [
        click.Option([*flag.names, flag.dest], is_flag=not flag.value, help=flag.help)
        for flag in (*OWN_FLAGS, *TORCH_FLAGS)
    ]


def _group() -> _Spotrun:
    return _Spotrun("spotrun", params=_flags(), invoke_without_command=True)


def answer() -> None:
    """What the shell asked by the variable, on stdout; then exit."""
    sys.exit(shell_complete(_group(), {}, "spotrun", VARIABLE, os.environ[VARIABLE]))


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for SHELL: eval "$(spotrun completion bash)"."""
    found = get_completion_class(shell)
    assert found is not None
    sys.stdout.write(found(_group(), {}, "spotrun", VARIABLE).source() + "\n")
