"""Which faults a campaign does, and when: a pure function of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.fault.kind import KINDS


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come. `pick` chooses among the nodes that live by then."""

    kind: str
    pick: int
    for_s: float  # until it is healed
    settles: bool  # the job makes steps again before the next one; else the next one falls into this one's wake


def plan(seed: int, count: int, kinds: tuple[str, ...]) -> list[Planned]:
    chosen = random.Random(seed)
    weights = [KINDS[name].weight for name in kinds]
    return [
        Planned(
            kind,
            chosen.randrange(1 << 16),
            round(chosen.uniform(*KINDS[kind].for_s), 2),
            settles=chosen.random() < 0.6,
        )
        for kind in chosen.choices(kinds, weights, k=count)
    ]
