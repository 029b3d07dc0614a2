"""When the nodes of a cluster come and go: from a file of either usual format, or from a seeded generator. Pure.

milliseconds,add|remove,node                                  Bamboo, github.com/uclasystem/bamboo
{"metadata": {"gap_seconds": 300}, "data": [4, 4, 2, ...]}    SkyPilot, github.com/skypilot-org/spot-traces:
                                                              how many nodes there are, each so many seconds
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

# The generator's two moods, with the means that public traces show (hours of few losses, then many at once; 2 nodes an
# event, sometimes all; as many come as go): a Poisson process would underrate the bad hours.
MOOD_S = {"calm": 3600.0, "storm": 600.0}
LOSS_GAP_S = {"calm": 7200.0, "storm": 400.0}
RETURN_S = 600.0
ONE_MORE = 0.5  # the chance that a loss takes one more node
ALL = 0.05  # the chance that it takes all


class NotATrace(Exception):
    """The text is in neither format."""


@dataclass(frozen=True, slots=True)
class Change:
    at_s: float
    what: Literal["add", "remove"]
    node: str


def parse(text: str) -> list[Change]:
    """Raises NotATrace."""
    try:
        if text.lstrip().startswith("{"):
            document = json.loads(text)
            return _from_counts(map(int, document["data"]), float(document["metadata"]["gap_seconds"]))
        return _ordered(_from_row(row) for row in text.splitlines() if row.strip())
    except (ValueError, LookupError, TypeError) as error:
        raise NotATrace(
            f"neither rows of `milliseconds,add|remove,node` nor a JSON object of gap_seconds and data: {error!r}"
        ) from None


def generate(seed: int, nodes: int, length_s: float) -> list[Change]:
    """A cluster of `nodes`: in storms several are lost at once, in calm hours hardly any; each is replaced later."""
    dice = random.Random(seed)
    there = [f"n{index}" for index in range(nodes)]
    changes = [Change(0.0, "add", node) for node in there]
    returns: list[float] = []
    made = nodes
    now_s, mood = 0.0, "calm"
    mood_ends_s = dice.expovariate(1 / MOOD_S[mood])
    while True:
        loss_s = now_s + dice.expovariate(1 / LOSS_GAP_S[mood])
        now_s = min([loss_s, mood_ends_s, *returns])
        if now_s >= length_s:
            return changes
        if now_s in returns:
            returns.remove(now_s)
            there.append(f"n{made}")
            made += 1
            changes.append(Change(now_s, "add", there[-1]))
        elif now_s == mood_ends_s:
            mood = "storm" if mood == "calm" else "calm"
            mood_ends_s += dice.expovariate(1 / MOOD_S[mood])
        elif there:
            size = len(there) if dice.random() < ALL else 1
            while size < len(there) and dice.random() < ONE_MORE:
                size += 1
            for node in dice.sample(there, size):
                there.remove(node)
                changes.append(Change(now_s, "remove", node))
                returns.append(now_s + dice.expovariate(1 / RETURN_S))


def thin(changes: Iterable[Change], nodes: int) -> list[Change]:
    """A cluster of at most `nodes` at a time out of a larger one: each k-th node that ever came, and its whole life."""
    changes = list(changes)
    sample_every = max(1, round(most_at_once(changes) / nodes))
    order = list(dict.fromkeys(change.node for change in changes if change.what == "add"))
    kept = set(order[::sample_every])
    there: set[str] = set()
    thinned = []
    for change in changes:
        if change.what == "remove" and change.node in there:
            there.remove(change.node)
        elif change.what == "add" and change.node in kept and len(there) < nodes:
            there.add(change.node)
        else:
            continue
        thinned.append(change)
    return thinned


def window(changes: Iterable[Change], start_s: float, length_s: float) -> list[Change]:
    """The part that begins at `start_s`, which becomes 0, with the nodes that are there by then."""
    there: dict[str, None] = {}
    later = []
    for change in changes:
        if change.at_s > start_s:
            if change.at_s < start_s + length_s:
                later.append(replace(change, at_s=change.at_s - start_s))
        elif change.what == "add":
            there[change.node] = None
        else:
            there.pop(change.node, None)
    return [*(Change(0.0, "add", node) for node in there), *later]


def compress(changes: Iterable[Change], factor: float) -> list[Change]:
    return [replace(change, at_s=change.at_s / factor) for change in changes]


def most_at_once(changes: Iterable[Change]) -> int:
    return max(count for _, count in counts(changes))


def counts(changes: Iterable[Change]) -> list[tuple[float, int]]:
    """(second, nodes from then on), from (0, 0)."""
    found, now = [(0.0, 0)], 0
    for change in changes:
        now += 1 if change.what == "add" else -1
        found.append((change.at_s, now))
    return found


def _from_row(row: str) -> Change:
    at_ms, what, node = (part.strip() for part in row.split(","))
    if what not in ("add", "remove"):
        raise ValueError(row)
    return Change(float(at_ms) / 1000, "add" if what == "add" else "remove", node)


def _from_counts(data: Iterable[int], gap_s: float) -> list[Change]:
    """The newest go first, as nothing tells which did."""
    there: list[str] = []
    changes, made = [], 0
    for index, count in enumerate(data):
        while len(there) > count:
            changes.append(Change(index * gap_s, "remove", there.pop()))
        while len(there) < count:
            there.append(f"n{made}")
            made += 1
            changes.append(Change(index * gap_s, "add", there[-1]))
    return changes


def _ordered(changes: Iterable[Change]) -> list[Change]:
    return sorted(changes, key=lambda change: change.at_s)
