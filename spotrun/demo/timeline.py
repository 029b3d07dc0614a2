"""What happened to a job and what it cost, from the agents' events and the training script's metrics. Pure.

All times are seconds of one host's monotonic clock, as `mono_s` in events and metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Step:
    """A line of metrics.jsonl."""

    step: int
    loss: float
    world: int
    round: int
    mono_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """A world, as the first agent that entered it told of it; `nodes` in rank order."""

    number: int
    cause: str
    reason: str
    nodes: tuple[str, ...]
    world: int
    formed_s: float


@dataclass(frozen=True, slots=True)
class Deed:
    """What the demo did to a node: "kill", "start" or "drain"."""

    kind: str
    node: str
    mono_s: float


@dataclass(frozen=True, slots=True)
class Notice:
    """A node heard that it will be taken away in `seconds_left`."""

    node: str
    source: str
    seconds_left: float
    mono_s: float


@dataclass(frozen=True, slots=True)
class Incident:
    """A change of the world that training got over.

    `pause_s` is what the nodes that stayed felt: from their last step in the old world to the first in the new one.
    `noticed_s` is how long it took until the new round: from the demo's own deed, where that was the cause, or for a
    drain from when the node heard of it (until then it is the cloud's time: a node asks it every few seconds).
    """

    rounds: tuple[Round, ...]
    deed: Deed | None
    noticed_s: float | None
    last: Step
    first: Step

    @property
    def round(self) -> Round:
        return self.rounds[-1]

    @property
    def pause_s(self) -> float:
        return self.first.mono_s - self.last.mono_s

    @property
    def recomputed(self) -> int:
        """Steps of the old world that are lost: what was made since the survivors' last copy of the state."""
        return max(0, self.last.step - self.first.step + 1)


@dataclass(frozen=True, slots=True)
class Timeline:
    steps: tuple[Step, ...] = ()
    rounds: tuple[Round, ...] = ()
    incidents: tuple[Incident, ...] = ()
    notices: tuple[Notice, ...] = ()

    @property
    def recomputed(self) -> int:
        return sum(incident.recomputed for incident in self.incidents)


CAUSES = {"kill": "lost", "drain": "drained", "start": "joined"}  # of rounds, by the deed that leads to them


def timeline(
    events: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Iterable[Mapping[str, Any]], deeds: Sequence[Deed] = ()
) -> Timeline:
    """`events` by the node that wrote them."""
    steps = tuple(_step(line) for line in metrics)
    rounds, notices = _rounds(events), _notices(events)
    return Timeline(steps, rounds, tuple(_incidents(steps, rounds, notices, deeds)), notices)


def _step(line: Mapping[str, Any]) -> Step:
    return Step(line["step"], line["loss"], line["world"], line["round"], line["mono_s"])


def _rounds(events: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Round, ...]:
    found: dict[int, Round] = {}
    formed = [event for node in events.values() for event in node if event["kind"] == "round_formed"]
    for event in sorted(formed, key=lambda event: event["mono_s"]):
        if event["round"] not in found:
            found[event["round"]] = Round(
                event["round"],
                event["cause"],
                event["reason"],
                tuple(event["nodes"]),
                event["world_size"],
                event["mono_s"],
            )
    return tuple(found[number] for number in sorted(found))


def _notices(events: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Notice, ...]:
    """Those that mean the end of a node, each once: an agent may tell of one in several events."""
    found: dict[tuple[str, str], Notice] = {}
    for node, lines in events.items():
        for event in lines:
            if event["kind"] == "notice" and event.get("grade", "WILL") == "WILL" and not event.get("withdrawn"):
                notice = Notice(node, event["source"], event["seconds_left"], event["mono_s"])
                found.setdefault((node, notice.source), notice)
    return tuple(found.values())


def _incidents(
    steps: Sequence[Step], rounds: Sequence[Round], notices: Sequence[Notice], deeds: Sequence[Deed]
) -> Iterable[Incident]:
    """One for each pair of neighbouring steps that were made in different rounds; a round without a step costs too."""
    left = list(deeds)
    for last, first in pairwise(steps):
        between = tuple(item for item in rounds if last.round < item.number <= first.round)
        if between:
            deed = _deed(between, left)
            if deed is not None:
                left.remove(deed)
            noticed_s = between[0].formed_s - _known_s(deed, notices) if deed else None
            yield Incident(between, deed, noticed_s, last, first)


def _known_s(deed: Deed, notices: Sequence[Notice]) -> float:
    """When somebody in the job could first know of it."""
    if deed.kind != "drain":
        return deed.mono_s
    return next((notice.mono_s for notice in notices if notice.node == deed.node), deed.mono_s)


def _deed(between: Sequence[Round], deeds: Sequence[Deed]) -> Deed | None:
    """The first deed that explains one of these rounds."""
    causes = {item.cause for item in between}
    for deed in deeds:
        if deed.mono_s <= between[-1].formed_s and CAUSES[deed.kind] in causes:
            return deed
    return None
