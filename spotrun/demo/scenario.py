"""What the demo does to its nodes, as data, and when: a pure function of what training has done so far.

An act is due once the present world has made its steps and the demo's share of time is used; so a slow machine takes
longer and shows the same things, and nothing happens before training has recovered from the act before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spotrun.demo.timeline import Timeline

FIRST_NODES = ("node-a", "node-b", "node-c")
REPLACEMENT = "node-d"


@dataclass(frozen=True, slots=True)
class Act:
    """`kind` is "kill", "start", "drain" or "end"; a kill or drain takes the node of that `rank`."""

    kind: str
    world: int  # workers that must be training
    steps: int  # made by them, since the last change
    share: float  # of the demo's seconds that must have passed
    rank: int = 0
    node: str = ""


SCENARIO = (
    Act("kill", world=3, steps=20, share=0.30, rank=0),  # the hardest: rank 0 holds the store and writes checkpoints
    Act("start", world=2, steps=20, share=0.48, node=REPLACEMENT),
    Act("drain", world=3, steps=20, share=0.70, rank=1),
    Act("end", world=2, steps=20, share=0.94),
)


@dataclass(frozen=True, slots=True)
class Due:
    """An act with the node it is for."""

    kind: str
    node: str


def due(acts: Sequence[Act], done: int, now: Timeline, passed: float) -> Due | None:
    """The act after the first `done`, if its time has come; `passed` is the share of the demo's seconds gone by."""
    if done >= len(acts) or not now.rounds or not now.steps:
        return None
    act, current, last = acts[done], now.rounds[-1], now.steps[-1]
    if last.round != current.number or current.world != act.world or passed < act.share:
        return None
    made = sum(1 for step in now.steps if step.round == current.number)
    if made < act.steps:
        return None
    return Due(act.kind, act.node or (current.nodes[act.rank] if act.kind in ("kill", "drain") else ""))
