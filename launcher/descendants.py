"""The processes below one process, or in some sessions, from /proc. Standard library only: the zygote has no psutil."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple


class Stat(NamedTuple):
    pid: int
    parent: int
    session: int
    dead: bool  # a zombie


def _all() -> Iterator[Stat]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # pid (comm) state ppid pgrp session ...: comm may hold anything, so look after the last parenthesis.
                state, parent, _, session = file.read().rpartition(b")")[2].split()[:4]
        except OSError:  # gone since the listing
            continue
        yield Stat(int(name), int(parent), int(session), state in (b"Z", b"X"))


def descendants(pid: int) -> list[int]:
    """The living ones, nearest first."""
    children: dict[int, list[Stat]] = defaultdict(list)
    for stat in _all():
        children[stat.parent].append(stat)
    found = list(children[pid])
    for stat in found:  # grows while it is walked
        found += children[stat.pid]
    return [stat.pid for stat in found if not stat.dead]


def session_members(sessions: Collection[int]) -> list[int]:
    """The living processes in any of these sessions."""
    return [stat.pid for stat in _all() if stat.session in sessions and not stat.dead]
