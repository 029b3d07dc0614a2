"""What a kind of fault is: a context that does it when it is entered and heals it when it is left.

What a fault is said to take out of the job, and what it may cost, goes into the history as a `Harm`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import psutil

from tests.fault.field import Field

TTL_S = 2.0
BRIEF = (0.1, 0.8 * TTL_S)
LONG = (1.6 * TTL_S, 2.5 * TTL_S)

Said: TypeAlias = dict[str, Any]  # fields of a Harm
Do: TypeAlias = Callable[[Field, int], AbstractContextManager[Said]]


@dataclass(frozen=True, slots=True)
class Kind:
    """`weight`: how often it is chosen. New nodes are dear, so what takes nodes away is chosen less often."""

    do: Do
    for_s: tuple[float, float] = (0.0, 0.0)
    weight: float = 1.0
    needs: str = ""  # what the surroundings (surroundings.py) or the field must have


KINDS: dict[str, Kind] = {}


def fault(
    name: str, for_s: tuple[float, float] = (0.0, 0.0), weight: float = 1.0, needs: str = ""
) -> Callable[..., Any]:
    def register(function: Callable[[Any, int], Iterator[Said]]) -> None:
        KINDS[name] = Kind(contextlib.contextmanager(function), for_s, weight, needs)

    return register


def possible(can: frozenset[str]) -> tuple[str, ...]:
    """The kinds that need nothing that is not there."""
    return tuple(name for name, kind in KINDS.items() if not kind.needs or kind.needs in can)


def send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def stand_still(processes: list[psutil.Process]) -> Iterator[Said]:
    send(processes, signal.SIGSTOP)
    try:
        yield {"pauses": True}
    finally:
        send(processes, signal.SIGCONT)
