"""Who has machines: one small Protocol, and how a provider's own program is run."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Protocol

from spotrun.errors import SpotrunError

RUN_S = 120.0  # a provider's program gets this long


class Refused(SpotrunError):
    """The provider has no machine, or gave no answer."""


class Provider(Protocol):
    """Machines are known by the names that the pool gives them. All calls may be repeated, and raise Refused."""

    def ask(self, name: str, place: str) -> None:
        """Have a machine of that name started at `place`, that runs the node of that name. It may take its time."""

    def release(self, name: str) -> None:
        """Give it back, whether it has come or not; no error where there is none."""

    def names(self, prefix: str) -> frozenset[str]:
        """The machines that there are or will be, of all whose names begin with `prefix`."""


def run(command: Sequence[str], text: str = "", environment: Mapping[str, str] | None = None) -> str:
    """What the program writes; no shell is used. Raises Refused where it fails, with the end of what it says."""
    try:
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise Refused(f"{command[0]} ended with {done.returncode}: {said or 'it said nothing'}")
    return done.stdout
