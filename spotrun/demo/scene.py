"""What a person who watches is shown, worked out from the timeline and the state of the processes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from spotrun.demo.timeline import Deed, Incident, Round, Timeline

NAMES = {"aws": "AWS"}  # of those who give notice

Tone = Literal["deed", "round", "good", "bad"]


@dataclass(frozen=True, slots=True)
class Process:
    """An agent: its exit code, None while it runs."""

    node: str
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class NodeRow:
    node: str
    state: str
    rank: int | None  # in the present world


@dataclass(frozen=True, slots=True)
class Story:
    """Something that happened, in words; `at_s` counts from the demo's start."""

    at_s: float
    tone: Tone
    text: str


@dataclass(frozen=True, slots=True)
class Scene:
    passed_s: float
    seconds: float
    timeline: Timeline
    nodes: tuple[NodeRow, ...]
    stories: tuple[Story, ...]
    stalled_s: float | None  # since the last step, while a new world has not made one yet


def scene(
    now: Timeline,
    events: Mapping[str, Sequence[Mapping[str, Any]]],
    processes: Sequence[Process],
    deeds: Sequence[Deed],
    *,
    began_s: float,
    now_s: float,
    seconds: float,
) -> Scene:
    """The scene at `now_s`; `events` by node, `processes` in the order of their start."""
    current = now.rounds[-1] if now.rounds else None
    training = bool(current and now.steps and now.steps[-1].round == current.number)
    stalled_s = now_s - now.steps[-1].mono_s if now.steps and not training and not _ended(events) else None
    rows = [_row(process, current, training, events.get(process.node, ()), deeds) for process in processes]
    stories = [*_deeds(now, deeds), *_notices(now), *_rounds(now), *_resumed(now), *_others(events)]
    told = [Story(at_s - began_s, tone, text) for at_s, tone, text in sorted(stories, key=lambda item: item[0])]
    return Scene(now_s - began_s, seconds, now, tuple(rows), tuple(told), stalled_s)


def _ended(events: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    return any(event["kind"] == "job_ended" for node in events.values() for event in node)


def _row(
    process: Process,
    current: Round | None,
    training: bool,
    events: Sequence[Mapping[str, Any]],
    deeds: Sequence[Deed],
) -> NodeRow:
    done_to = {deed.kind for deed in deeds if deed.node == process.node}
    rank = current.nodes.index(process.node) if current and process.node in current.nodes else None
    if "kill" in done_to:
        return NodeRow(process.node, "killed", None)
    if "drain" in done_to:
        return NodeRow(process.node, "leaving" if process.exit_code is None else "left", None)
    if any(event["kind"] == "job_ended" for event in events):
        return NodeRow(process.node, "done", None)
    if process.exit_code is not None:
        return NodeRow(process.node, f"exited with code {process.exit_code}", None)
    if current is not None and rank is not None:
        return NodeRow(process.node, "training" if training else _entering(current, events), rank)
    return NodeRow(process.node, "getting ready", None)


def _entering(current: Round, events: Sequence[Mapping[str, Any]]) -> str:
    """Workers that trained in an earlier round go on in the same processes; a newcomer's are started."""
    before = any(event["kind"] == "workers_started" and event["round"] < current.number for event in events)
    return f"entering round {current.number}" if before else "starting its worker"


Untold = tuple[float, Tone, str]  # with its time on the host's clock


def _deeds(now: Timeline, deeds: Sequence[Deed]) -> list[Untold]:
    stories: list[Untold] = []
    for deed in deeds:
        if deed.kind == "kill":
            text = f"SIGKILL: {deed.node}{_rank(now, deed.node, deed.mono_s)} is gone without a word."
            stories.append((deed.mono_s, "deed", text))
        elif deed.kind == "start":
            stories.append((deed.mono_s, "deed", f"A new machine: {deed.node} starts and asks to join."))
    return stories  # a drain is told of when the node has heard of it


def _notices(now: Timeline) -> list[Untold]:
    return [
        (
            notice.mono_s,
            "deed",
            (
                f"{NAMES.get(notice.source, notice.source)}: {notice.node}"
                f"{_rank(now, notice.node, notice.mono_s)} will be reclaimed in {notice.seconds_left:.0f} s."
            ),
        )
        for notice in now.notices
    ]


def _rank(now: Timeline, node: str, at_s: float) -> str:
    """The rank that `node` had then, in brackets."""
    before = [item for item in now.rounds if item.formed_s <= at_s]
    nodes = before[-1].nodes if before else ()
    return f" (rank {nodes.index(node)})" if node in nodes else ""


def _rounds(now: Timeline) -> list[Untold]:
    stories: list[Untold] = []
    for item in now.rounds:
        what = {
            "start": f"{', '.join(item.nodes)} train together.",
            "failed": f"all start again: {item.reason}.",
        }.get(item.cause, f"{item.reason}; {', '.join(item.nodes)} go on.")
        stories.append((item.formed_s, "bad" if item.cause == "failed" else "round", f"Round {item.number}: {what}"))
    return stories


def again(incident: Incident) -> str:
    """The steps that had to be done a second time, in words."""
    count = incident.recomputed
    return "no step done again" if count == 0 else f"{count} step{'s' if count > 1 else ''} done again"


def _resumed(now: Timeline) -> list[Untold]:
    return [
        (
            incident.first.mono_s,
            "good",
            f"Training again at world size {incident.first.world}: paused {incident.pause_s:.1f} s, {again(incident)}.",
        )
        for incident in now.incidents
    ]


def _others(events: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Untold]:
    """What is not part of the plan, and the end."""
    stories: dict[str, Untold] = {}  # each once, however many nodes tell of it
    for node, lines in events.items():
        for event in lines:
            kind, at_s = event["kind"], event["mono_s"]
            if kind == "worker_failed" and not event.get("peer_loss"):
                stories.setdefault(
                    f"{kind} {event['round']} {event['rank']}",
                    (at_s, "bad", f"Rank {event['rank']} on {node} failed with exit code {event['exit_code']}."),
                )
            elif kind == "fenced":
                stories[f"{kind} {node} {at_s}"] = (at_s, "bad", f"{node} lost its lease and joins anew.")
            elif kind == "job_ended":
                tone: Tone = "good" if event["state"] == "succeeded" else "bad"
                stories.setdefault(kind, (at_s, tone, f"The job {event['state']}: {event['reason']}."))
    return list(stories.values())
