"""What a ledger says of a job: its rounds, where each node's time went, and what that cost. Pure.

The clocks of nodes are not compared for any decision; here their readings are put on one axis for people to look at,
and each pause is as long as the node that tells of it measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from spotrun.launcher.ledger import ENDS, Entry, checkpoint_s_by_round
from spotrun.report.places import Place, places


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a round, in seconds from the beginning of the job."""

    start_s: float
    end_s: float
    state: str  # training, paused or restoring
    nodes: tuple[str, ...]
    round: int

    @property
    def node_s(self) -> float:
        return (self.end_s - self.start_s) * len(self.nodes)


@dataclass(frozen=True, slots=True)
class Round:
    number: int
    start_s: float
    end_s: float
    nodes: tuple[str, ...]
    world_size: int


@dataclass(frozen=True, slots=True)
class Point:
    """How far training was."""

    at_s: float
    step: int
    loss: float | None


@dataclass(frozen=True, slots=True)
class Split:
    """Where the paid node-seconds went."""

    useful: float
    recomputed: float  # steps that were made again
    checkpoint: float  # snapshots and saves kept the loop from going on
    waiting: float  # from the last step before a change to the round after it
    restart: float  # from that round to its first step

    @property
    def total(self) -> float:
        return self.useful + self.recomputed + self.checkpoint + self.waiting + self.restart

    @property
    def goodput(self) -> float:
        return self.useful / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class History:
    began_wall_s: float
    length_s: float
    rounds: tuple[Round, ...]
    spans: tuple[Span, ...]
    nodes: tuple[str, ...]  # in the order in which they came
    incidents: tuple[Entry, ...]
    points: tuple[Point, ...]
    split: Split
    shares: dict[str, float]  # of a step's time: data, communication, checkpoint; none where nothing tells of steps
    ended: str  # how; empty while it runs
    places: tuple[Place, ...]


def of(entries: Iterable[Entry]) -> History:
    """The history that the entries of one job tell; entries of several nodes' files may tell the same twice."""
    told = sorted(entries, key=lambda it: it.wall_s)
    began_s = told[0].wall_s if told else 0.0
    end = _end(told)
    length_s = (end.wall_s if end else told[-1].wall_s) - began_s if told else 0.0
    rounds = _rounds(told, began_s, length_s)
    incidents = _once(it for it in told if it.what == "incident")
    spans: list[Span] = []
    recomputed = checkpoint = 0.0
    stalls_s = checkpoint_s_by_round(told)
    by_round = {it.round: it for it in incidents}
    for index, current in enumerate(rounds):
        incident = by_round.get(current.number)
        following = by_round.get(rounds[index + 1].number) if index + 1 < len(rounds) else None
        own = _spans(current, incident, following, began_s)
        spans += own
        stall_s = stalls_s.get(current.number, 0.0)
        if following is not None and following.cost is not None:
            stall_s = max(stall_s, following.cost.checkpoint_s)
        trained = sum(it.node_s for it in own if it.state == "training")
        checkpoint += min(stall_s * len(current.nodes), trained)
        if incident is not None and incident.cost is not None and incident.cost.steps_recomputed:
            members = len(_nodes(incident)) or len(current.nodes)
            recomputed += max(0.0, incident.cost.node_s - incident.cost.paused_s * members)
    by_state = {
        state: sum(it.node_s for it in spans if it.state == state) for state in ("training", "paused", "restoring")
    }
    recomputed = min(recomputed, by_state["training"])
    useful = max(0.0, by_state["training"] - recomputed - checkpoint)
    checkpoint = by_state["training"] - recomputed - useful
    split = Split(useful, recomputed, checkpoint, by_state["paused"], by_state["restoring"])
    points = [
        Point(
            it.wall_s - began_s, it.step, float(it.detail["loss"]) if it.detail.get("loss", "None") != "None" else None
        )
        for it in told
        if it.what == "progress"
    ]
    nodes = tuple(dict.fromkeys(node for it in rounds for node in it.nodes))
    return History(
        began_s,
        length_s,
        tuple(rounds),
        tuple(spans),
        nodes,
        tuple(incidents),
        tuple(points),
        split,
        _shares(told),
        end.message or end.detail.get("state", "ended") if end else "",
        places(told),
    )


def _end(told: Sequence[Entry]) -> Entry | None:
    """What ended the job, or that the last of its nodes left: of a stop, their files tell no more."""
    if end := next((it for it in reversed(told) if it.what in ENDS), None):
        return end
    formed = [it for it in told if it.what == "round_formed"]
    left = [it for it in told if it.what == "left" and formed and it.round == formed[-1].round]
    return left[-1] if left and set(_nodes(formed[-1])) <= {it.node for it in left} else None


def _shares(told: Iterable[Entry]) -> dict[str, float]:
    """The means over the job; communication only where it is always known, as in `spotrun status`."""
    points = [it.detail for it in told if it.what == "progress" and "data_share" in it.detail]
    found: dict[str, float] = {}
    for name in ("data", "communication", "checkpoint"):
        values = [it.get(f"{name}_share", "None") for it in points]
        if values and "None" not in values:
            found[name] = sum(map(float, values)) / len(values)
    return found


def _once(entries: Iterable[Entry]) -> list[Entry]:
    """One entry a round: that of its rank 0, else of whoever spoke first."""
    found: dict[int, Entry] = {}
    for it in entries:
        if it.round not in found or (_nodes(it)[:1] == (it.node,) and found[it.round].node != it.node):
            found[it.round] = it
    return [found[number] for number in sorted(found)]


def _nodes(entry: Entry) -> tuple[str, ...]:
    return tuple(name for name in entry.detail.get("nodes", "").split(",") if name)


def _rounds(told: Sequence[Entry], began_s: float, length_s: float) -> list[Round]:
    formed = _once(it for it in told if it.what == "round_formed")
    found = []
    for index, it in enumerate(formed):
        following = formed[index + 1].wall_s - began_s if index + 1 < len(formed) else length_s
        start_s = it.wall_s - began_s
        nodes = _nodes(it)
        size = int(it.detail.get("world_size", len(nodes)))
        found.append(Round(it.round, start_s, max(start_s, following), nodes, size))
    return found


def _spans(current: Round, incident: Entry | None, following: Entry | None, began_s: float) -> list[Span]:
    """What its members did: restoring up to the first step, then training, then paused once no step followed."""
    first_s = current.start_s
    if incident is not None:
        first_s = min(max(current.start_s, incident.wall_s - began_s), current.end_s)
    last_s = current.end_s
    if following is not None and following.cost is not None:
        last_s = min(max(first_s, following.wall_s - began_s - following.cost.paused_s), current.end_s)
    cut = [
        (current.start_s, first_s, "restoring"),
        (first_s, last_s, "training"),
        (last_s, current.end_s, "paused"),
    ]
    return [Span(start, end, state, current.nodes, current.number) for start, end, state in cut if end > start]
