"""The table of commands. To add one: a file of its own in this folder, and one line here.

A command is a click command, or a function that takes the arguments behind its name and may return an exit code. It
raises the errors of `spotrun.errors`. Nothing of it is imported before it is called.
"""

from __future__ import annotations

import difflib
import importlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spotrun.errors import UsageError


@dataclass(frozen=True, slots=True)
class Command:
    target: str  # "module:function"
    help: str

    def load(self) -> Callable[[list[str]], Any]:
        """The function itself; a click command is wrapped so that its errors are ours."""
        module, _, name = self.target.partition(":")
        found = getattr(importlib.import_module(module), name)
        return found if not hasattr(found, "make_context") else _from_click(found, self)


COMMANDS = {
    "run": Command("spotrun.cli.launch:main", "Launch a script; the word may be left out."),
    "demo": Command("spotrun.cli.demo:main", "See training survive on this one machine."),
    "status": Command("spotrun.cli.status:status", "How a running job stands; --watch keeps it in view."),
    "events": Command("spotrun.cli.events:events", "What has happened to a job, and what it cost."),
    "drain": Command("spotrun.cli.drain:drain", "Make a node of a running job leave, without losing a step."),
    "stop": Command("spotrun.cli.stop:stop", "End a running job on all nodes, its state saved first."),
    "readmit": Command("spotrun.cli.readmit:readmit", "Let a node in again that was kept out for its failures."),
    "report": Command("spotrun.cli.report:report", "Write what happened to a job into one HTML file."),
    "doctor": Command("spotrun.cli.doctor:doctor", "Find out what would go wrong before a job starts."),
    "plan": Command("spotrun.cli.plan:plan", "Rank machines for a job by what it will cost."),
    "audit": Command("spotrun.cli.audit:audit", "Prove from a job's audit that each sample was used exactly once."),
    "checkpoints": Command("spotrun.cli.checkpoints:checkpoints", "List, verify, prune and export checkpoints."),
    "submit": Command("spotrun.cli.submit:submit", "Submit a job to Slurm or Kubernetes."),
    "pool": Command("spotrun.cli.pool:pool", "Replace lost nodes by machines of Slurm, Kubernetes or others."),
    "bench": Command("spotrun.cli.bench:bench", "Measure spotrun beside torchrun on this machine."),
    "etcd": Command("spotrun.cli.etcd:etcd", "Run an etcd for jobs on this host, in the foreground."),
    "completion": Command("spotrun.cli.completion:completion", "Print the completion script of a shell."),
}


def misspelt(word: str) -> str | None:
    """The command that `word` was most likely meant to be, if it is neither one nor a file."""
    if not word or word.startswith("-") or word in COMMANDS or Path(word).exists() or shutil.which(word):
        return None
    close = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.7)
    return close[0] if close else None


def _from_click(command: Any, entry: Command) -> Callable[[list[str]], Any]:
    import click

    name = next(name for name, candidate in COMMANDS.items() if candidate is entry)

    def call(arguments: Sequence[str]) -> Any:
        try:
            return command.main(list(arguments), prog_name=f"spotrun {name}", standalone_mode=False)
        except click.exceptions.Abort:
            raise KeyboardInterrupt from None
        except click.ClickException as error:
            raise UsageError(f"{error.format_message().rstrip('.')}: see `spotrun {name} --help`.") from None

    return call
