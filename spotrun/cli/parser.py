"""The parser of `spotrun run`: torch's own, with our flags added to it. It imports torch when it is built."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from spotrun.cli.flags import BACKEND, OWN, OWN_FLAGS, TORCH_FLAGS
from spotrun.cli.help import USAGE, help_text
from spotrun.config import parse_nnodes
from spotrun.errors import UsageError

NO_SCRIPT = f"There is no script to launch: {USAGE}; `spotrun --help` tells more."
_STATIC = ("node_rank", "master_addr", "master_port")


class LaunchParser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and takes its help from the table of flags."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(_explain(message))

    def format_help(self) -> str:
        return help_text()


def get_args_parser() -> argparse.ArgumentParser:
    """As torch.distributed.run has it. Raises UsageError for a PET_* variable that cannot be read."""
    from torch.distributed import run as torchrun

    try:
        theirs = torchrun.get_args_parser()
    except ValueError as error:  # PET_STANDALONE=yes
        raise UsageError(f"A PET_* variable for a switch must be 0 or 1: {error}.") from None
    if "PET_RDZV_BACKEND" not in os.environ:
        theirs.set_defaults(rdzv_backend=BACKEND)
    parser = LaunchParser(prog="spotrun", parents=[theirs], add_help=False)
    for group in OWN:
        section = parser.add_argument_group(group.title)
        for flag in group.flags:
            from_env = os.environ.get(flag.own_env) if flag.env else None
            takes: dict[str, Any] = {"metavar": flag.value} if flag.value else {"action": "store_true"}
            section.add_argument(*flag.names, dest=flag.dest, default=from_env or None, help=flag.help, **takes)
    return parser


def parse_args(args: Sequence[str] | None) -> argparse.Namespace:
    """As torch.distributed.run has it: raises UsageError, but SystemExit after --help."""
    parser = get_args_parser()
    parsed = parser.parse_args(args)
    if _is_static(parser, args, parsed):
        parsed.rdzv_backend = "static"
    return parsed


def _is_static(parser: argparse.ArgumentParser, args: Sequence[str] | None, parsed: argparse.Namespace) -> bool:
    """Whether this is a line of torchrun that names its master and no backend, which means a static rendezvous."""
    if parsed.rdzv_endpoint or parsed.standalone:
        return False
    wanted = ("rdzv_backend", *_STATIC)
    parser.set_defaults(**dict.fromkeys(wanted))
    on_line = vars(parser.parse_args(args))
    given = {dest for dest in wanted if on_line[dest] is not None or f"PET_{dest.upper()}" in os.environ}
    if "rdzv_backend" in given or not given.intersection(_STATIC):
        return False
    return "master_port" in given or parse_nnodes(parsed.nnodes)[1] > 1  # else torchrun takes it for --standalone


def _explain(message: str) -> str:
    """The sentence for people instead of argparse's message."""
    if message.startswith("the following arguments are required"):
        return NO_SCRIPT
    if unknown := re.match(r"unrecognized arguments: (\S+)", message):
        word = unknown[1].partition("=")[0]
        names = [name for flag in (*OWN_FLAGS, *TORCH_FLAGS) for name in flag.names]
        close = difflib.get_close_matches(word, names, n=1)
        hint = f"did you mean {close[0]}?" if close else "`spotrun --help` lists them all."
        return f"The flag {word} is not known: {hint}"
    return f"{message[:1].upper()}{message[1:]}: `spotrun --help` tells what it takes."
