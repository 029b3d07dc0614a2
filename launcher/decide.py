"""What an agent does next: a pure function of where its node stands and how its workers are.

The agent applies the action and asks again, until there is nothing to do but wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from spotrun.rendezvous.membership import Standing

WorkersState = Literal["none", "running", "succeeded", "failed"]


class Action(Enum):
    WAIT = "wait for the next event"
    START = "start the workers of the round"
    RELEASE = "ask the workers to leave their round"
    ADMIT = "give the workers their place in the new round"
    ABORT = "stop the workers now: their round is over"
    STOP = "stop the workers with the grace that they were promised"
    REPORT = "tell the coordinator how the workers ended"
    TELL = "tell all nodes that this one leaves"
    LEAVE = "leave the job"
    FINISH = "end as the job ended"
    REFUSED = "end: the job does not take this node"


@dataclass(frozen=True, slots=True)
class Situation:
    standing: Standing
    workers: WorkersState = "none"
    started_round: int = 0  # of the present or last workers; 0: none so far
    started_as: str = ""  # the incarnation that started them
    reported: bool = False  # the end of those workers has been reported
    told: bool = False  # the other nodes know that this one leaves
    leaving: bool = False  # a signal or a notice wants this node gone
    cooperative: bool = False  # all workers use the training API: they stop by themselves, at the agreed step
    in_place: bool = False  # and they can enter the next round without a new process
    released_for: int = 0  # the round for which they were asked to leave theirs
    on_their_way: bool = False  # they may go on to the agreed step first
    ready: bool = False  # all have left it
    agreed: bool = False  # and did so at the agreed step, not because a collective failed
    overdue: bool = False  # they had their time
    hung: bool = False  # they make no steps any more, and are to be started anew for it


def decide(now: Situation) -> Action:
    standing = now.standing
    alive = now.workers != "none"
    if standing.refused is not None:
        return Action.STOP if alive else Action.REFUSED
    if standing.outcome is not None:
        return Action.STOP if alive else Action.FINISH
    if now.leaving and not _enters_first(now):
        # The others form their next round while the workers here still use their grace.
        if standing.joined and not now.told:
            return Action.TELL
        if now.workers == "running" and now.cooperative and now.told and not now.ready and not now.overdue:
            return Action.WAIT
        return Action.STOP if alive else Action.LEAVE
    if standing.round is None or standing.group_rank is None:
        # Fenced, or left out: what these workers do no longer counts.
        return Action.ABORT if alive and now.started_as != "" and _over(now) else Action.WAIT
    if standing.round.number > now.started_round or standing.incarnation != now.started_as:
        if now.workers != "running" or not now.cooperative or now.overdue:
            return Action.ABORT if alive else Action.START
        in_vain = now.on_their_way and now.hung  # whoever they wait for has died on the way
        if now.released_for != standing.round.number or in_vain:
            return Action.RELEASE
        if not now.ready:
            return Action.WAIT
        return Action.ADMIT if now.in_place and standing.incarnation == now.started_as else Action.ABORT
    # Workers that left for a drain that was withdrawn since ask for a new round.
    if (now.workers in ("failed", "succeeded") or (now.ready and now.agreed) or now.hung) and not now.reported:
        return Action.REPORT
    return Action.ABORT if now.workers == "failed" else Action.WAIT


def _enters_first(now: Situation) -> bool:
    """Whether a node that is to leave, which nobody knows yet, enters the next round before it says so.

    Its workers have left the last one, and perhaps nobody else has their state any more; in a round they can save it.
    """
    unknown = not now.told and now.standing.node_id not in now.standing.drains
    between = now.workers == "running" and now.in_place and now.ready and now.agreed
    return unknown and between and not now.overdue


def _over(now: Situation) -> bool:
    """Whether the workers' round has ended without this node."""
    fenced = now.standing.incarnation != now.started_as
    return fenced or (now.standing.round is not None and now.standing.round.number > now.started_round)
