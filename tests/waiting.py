"""Waiting for what must come, with a deadline that names it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
DEADLINE_S = 50.0


def until(
    what: str, condition: Callable[[], T], deadline_s: float = DEADLINE_S, detail: Callable[[], str] = lambda: ""
) -> T:
    """The first true value of `condition`; fails, naming `what` was waited for, at the deadline."""
    end_s = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s: {what} {detail()}"
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    """Whether the process still runs; a zombie that nobody has reaped yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
