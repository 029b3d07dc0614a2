"""The command line. `main` is `spotrun`; every other name of torch.distributed.run is here as well.

    import spotrun.cli as launch            # instead of: import torch.distributed.run as launch
    launch.main(["--standalone", "train.py"])

It may import the launcher; nothing imports it. Help, version and hints need no torch, so nothing here imports it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from spotrun.errors import SpotrunError, UsageError

__all__ = ["main"]

_LAUNCH = "spotrun.cli.launch"
_OURS = ("config_from_args", "get_args_parser", "parse_args", "run")


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; without one, launch a script.

    Without `args` this is the program `spotrun`: it takes sys.argv, prints errors and exits with their code. With
    `args` it is a function, as torch.distributed.run.main is: errors are raised.
    """
    if args is not None:
        _dispatch(list(args))
        return
    try:
        if "_SPOTRUN_COMPLETE" in os.environ:
            from spotrun.cli.completion import answer

            answer()
        _dispatch(sys.argv[1:])
    except SpotrunError as error:
        sys.stderr.write(f"spotrun: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # before there was an agent to handle it
        sys.exit(130)
    except BrokenPipeError:  # `spotrun events | head`
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:  # torch is not imported to name its class: most commands do without
        if not _is_worker_failure(error):
            raise
        sys.stderr.write(f"{error}\n")  # torch's report of the failed workers; our own stack would only hide it
        sys.exit(1)


def _dispatch(args: list[str]) -> None:
    from spotrun.cli.commands import COMMANDS, misspelt

    if args and args[0] in ("-h", "--help", "help", "--version"):
        from spotrun.cli.help import help_text, version_text

        sys.stdout.write(version_text() if args[0] == "--version" else help_text())
        return
    word = args[0] if args else ""
    if meant := misspelt(word):
        raise UsageError(f"There is neither a command nor a file {word!r}: did you mean `spotrun {meant}`?")
    command, rest = (COMMANDS[word], args[1:]) if word in COMMANDS else (COMMANDS["run"], args)
    code = command.load()(rest)
    if code:
        sys.exit(code)


def _is_worker_failure(error: Exception) -> bool:
    """Whether it is torch's ChildFailedError; asked so that torch is not imported for it."""
    torch_errors = sys.modules.get("torch.distributed.elastic.multiprocessing.errors")
    return torch_errors is not None and isinstance(error, torch_errors.ChildFailedError)


def __getattr__(name: str) -> Any:
    # The file is launch.py and not run.py: as a submodule, `run` would hide torch.distributed.run's function `run`.
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_LAUNCH if name in _OURS else "torch.distributed.run")
    return getattr(module, name)
