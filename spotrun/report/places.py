"""Where the state of a job lay, and how many bytes of it, by what its ledger tells. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spotrun.launcher.ledger import Entry


@dataclass(frozen=True, slots=True)
class Place:
    name: str  # the URL of checkpoints, or a node
    region: str  # "" where nobody has asked
    zone: str
    saves: int | None  # None: memory, which is written over and over
    size_bytes: int  # of all saves together; of memory, the most at a time


def places(entries: Iterable[Entry]) -> tuple[Place, ...]:
    """Checkpoints first. The same may be told several times, by entries that come later or from other files."""
    told = list(entries)
    return (*_checkpoints(told), *_memory(told))


def _checkpoints(told: Sequence[Entry]) -> list[Place]:
    """A round's sums grow as it is told of; where its last save is another node's, that has sums of its own."""
    sums: dict[tuple[str, str, int, str], tuple[int, int]] = {}
    for it in told:
        if it.what == "state_kept":
            key = (it.detail.get("url", ""), it.detail.get("region", ""), it.round, it.node)
            saves, size_bytes = _number(it, "saves"), _number(it, "size_bytes")
            sums[key] = max(sums.get(key, (0, 0)), (saves, size_bytes))
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for (url, region, _, _), (saves, size_bytes) in sums.items():
        before = found.get((url, region), (0, 0))
        found[url, region] = before[0] + saves, before[1] + size_bytes
    return [Place(url, region, "", *both) for (url, region), both in sorted(found.items())]


def _memory(told: Sequence[Entry]) -> list[Place]:
    placed = {it.node: it.detail for it in told if it.what == "node_placed"}
    most: dict[str, int] = {}
    for it in told:
        if it.what == "state_held":
            most[it.node] = max(most.get(it.node, 0), _number(it, "size_bytes"))
    return [
        Place(node, placed.get(node, {}).get("region", ""), placed.get(node, {}).get("zone", ""), None, size_bytes)
        for node, size_bytes in sorted(most.items())
    ]


def _number(entry: Entry, name: str) -> int:
    with contextlib.suppress(ValueError):
        return max(0, int(entry.detail.get(name, "")))
    return 0
