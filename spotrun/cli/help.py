"""What `spotrun --help` and `spotrun --version` print. Pure text from the tables; nothing here needs torch."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from spotrun.cli.commands import COMMANDS
from spotrun.cli.flags import OWN, TORCH, Flag, Group

USAGE = "spotrun [flags] script.py [arguments of the script]"
_INTRO = f"""\
Usage: {USAGE}
       spotrun COMMAND [...]
       spotrun --help | --version

torchrun for machines that can vanish: the same flags, and the job survives the loss of any node.

  spotrun --standalone --nproc-per-node=2 train.py
  spotrun --nnodes=2:8 --nproc-per-node=8 --rdzv-endpoint=etcd:2379 --rdzv-id=llm train.py
"""
_TORCHRUN = "torchrun's flags (also spelt with _ for -, and PET_NNODES and so on in the environment):"
_OWN_ENV = "In the environment: SPOTRUN_ON_LOSS, SPOTRUN_ETCD_USER and so on, for all but --fresh."
_CODES = """\
Exit codes: 0 done, 1 a worker failed, 2 a wrong flag or value, 3 etcd cannot be used, 4 the job does not take this
node, 5 a checkpoint cannot be used, 128+N stopped by signal N; of a drained node, --drain-exit-code."""
_INDENT = 28  # of what a flag does
_WIDTH = 100  # longer lines are hard to read


def help_text(width: int | None = None) -> str:
    """The whole text, for a terminal of `width` columns."""
    columns = min(width or shutil.get_terminal_size().columns, _WIDTH)
    parts = [_INTRO, "Commands:", *(_entry(name, command.help, columns) for name, command in COMMANDS.items()), ""]
    for group in OWN:
        parts += [*_group(group, columns), ""]
    parts += [_OWN_ENV, "", _TORCHRUN, ""]
    for group in TORCH:
        parts += [*_group(group, columns), ""]
    return "\n".join([*parts, _CODES, ""])


def version_text() -> str:
    from importlib import metadata

    from spotrun import __version__

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return f"spotrun {__version__} (torch {torch})\n"


def _group(group: Group, columns: int) -> Sequence[str]:
    return [f"{group.title}:", *(_flag(flag, columns) for flag in group.flags)]


def _flag(flag: Flag, columns: int) -> str:
    names = ", ".join(name for name in flag.names if "_" not in name)
    head = f"{names}={flag.value}" if flag.value else names
    choices = f" One of {', '.join(flag.choices)}." if flag.choices else ""
    default = f" [{flag.default}]" if flag.default else ""
    return _entry(head, flag.help + choices + default, columns)


def _entry(head: str, text: str, columns: int) -> str:
    lines = textwrap.wrap(text, max(columns - _INDENT, 20), break_long_words=False)
    padded = f"  {head}".ljust(_INDENT)
    if not padded.endswith(" "):
        return "\n".join([padded, *(" " * _INDENT + line for line in lines)])
    return "\n".join([padded + lines[0], *(" " * _INDENT + line for line in lines[1:])])
