"""Where the state is made safe when nodes are told to go: a pure choice from bytes, bandwidth and the seconds left.

    in memory     every rank holds the whole state and somebody stays: there is nothing to write
    save          the agreed step is written to the checkpoint directory
    finish        there is time for the save that is under way, but not for another after it
    nothing       not even for that; what is lost is the steps since the last whole checkpoint, and nobody waits for it

Bandwidths vary, and trying costs the survivors no more than the wait: a save that is thought to need up to
`DOUBT` times the time there is gets its try. All ranks choose alike, because the facts are agreed on first.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

DOUBT = 2.0


class Choice(Enum):
    IN_MEMORY = "in memory"
    SAVE = "save"
    FINISH = "finish"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Parting:
    """What is known at the agreed step, on the rank where it is worst."""

    in_memory: bool  # the nodes that stay hold the whole state
    all_leave: bool  # nobody would be left to hold it
    storage: bool  # there is a checkpoint directory
    left_s: float  # until the first of the leaving nodes has to be gone, less what leaving takes
    need_s: float | None = None  # what a save of this state takes by what was measured; None: none was made yet
    pending_s: float | None = None  # what the save under way still takes; None: there is none


def choose(now: Parting) -> Choice:
    if now.in_memory and not now.all_leave:
        return Choice.IN_MEMORY
    if not now.storage or now.left_s <= 0:
        return Choice.NOTHING
    before_s = now.pending_s or 0.0
    if now.need_s is None or before_s + now.need_s <= DOUBT * now.left_s:
        return Choice.SAVE
    if now.pending_s is not None and now.pending_s <= DOUBT * now.left_s:
        return Choice.FINISH
    return Choice.NOTHING


def lost(step: int, durable_step: int, why: str) -> str:
    """For people: what is lost where step `step` is in no place that stays."""
    steps = step - durable_step
    rest = f"step {durable_step} is the last that is saved" if durable_step else "nothing has been saved before"
    what = "1 step" if steps == 1 else f"{steps} steps"
    return f"{what} up to step {step} {'is' if steps == 1 else 'are'} lost: {why}; {rest}"
