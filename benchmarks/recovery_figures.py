"""From what the workers wrote and the agents recorded to the figures of one recovery. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Line = Mapping[str, Any]

# In the order in which they happen; a phase that did not happen is part of the next.
PHASES = ("detect", "stop", "rendezvous", "start", "import", "group", "model", "step")


@dataclass(frozen=True, slots=True)
class Recovery:
    """One event and the process group that trained on after it."""

    event_s: float  # monotonic
    old_group: int | None  # that trained before; None: a cold start
    new_group: int


def figures(
    recovery: Recovery, lines: Sequence[Line], agents: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, float]:
    """Seconds and counts; `agents` are the recorded events by node, without nodes that have left.

    event_to_step_s: the event -> every rank of the new world has made its first step.
    pause_s: the longest time until then in which no node that stays made a step.
    lost_steps: steps that had been made and were made again.
    groups: process groups formed on the way, at best 1.
    <phase>_s: see PHASES; together they are event_to_step_s.
    """
    new = [line for line in lines if line.get("group") == recovery.new_group]
    first = _first_steps(new)
    first_s = max(line["mono_s"] for line in first.values())
    later = {line["group"] for line in lines if line.get("group", 0) > (recovery.old_group or 0)}
    found: dict[str, float] = {
        "event_to_step_s": first_s - recovery.event_s,
        "groups": sum(1 for group in later if group <= recovery.new_group),
    }
    if recovery.old_group is not None:
        staying = {line["node"] for line in new}
        steps = [line for line in lines if line["what"] == "step" and line["group"] < recovery.new_group]
        old = [line for line in steps if line["group"] == recovery.old_group]
        last_s = max(line["mono_s"] for line in old if line["node"] in staying)
        times = sorted(line["mono_s"] for line in steps if line["node"] in staying and line["mono_s"] >= last_s)
        found["pause_s"] = max(b - a for a, b in pairwise([*times, first_s]))
        made, again = max(line["step"] for line in old), min(line["step"] for line in first.values())
        found["lost_steps"] = max(0, made - again + 1)
    return {**found, **phases(recovery, first_s, lines, new, agents)}


def phases(
    recovery: Recovery,
    first_s: float,
    lines: Sequence[Line],
    new: Sequence[Line],
    agents: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, float]:
    """How long each took, on the node or rank that was last to end it."""
    began = {line["mono_s"] for line in new if line["what"] == "group"}
    pids = {line["pid"] for line in new}
    members = {line["node"] for line in new}
    marks: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for node, records in agents.items():
        if node not in members:
            continue
        upto = [record for record in records if recovery.event_s <= record["mono_s"] <= max(began)]
        stopped = [record for record in upto if record["kind"] == "workers_stopped"]
        formed = [record for record in upto if record["kind"] == "round_formed"]
        if stopped:
            marks["detect"].append(stopped[-1]["mono_s"] - stopped[-1]["seconds"])
            marks["stop"].append(stopped[-1]["mono_s"])
        if formed:
            marks["rendezvous"].append(formed[-1]["mono_s"])
    for line in lines:
        if line["pid"] in pids and line["mono_s"] >= recovery.event_s and line["mono_s"] <= first_s:
            if line["what"] == "main":
                marks["start"].append(line["mono_s"])
            elif line["what"] == "imported":
                marks["import"].append(line["mono_s"])
            elif line["what"] in ("group", "model") and line["group"] == recovery.new_group:
                marks[line["what"]].append(line["mono_s"])
    marks["step"] = [first_s]
    durations: dict[str, float] = {}
    reached_s = recovery.event_s
    for phase in PHASES:
        if marks[phase]:
            at_s = max(reached_s, *marks[phase])
            durations[f"{phase}_s"] = at_s - reached_s
            reached_s = at_s
    return durations


def _first_steps(lines: Sequence[Line]) -> dict[int, Line]:
    """By rank."""
    first: dict[int, Line] = {}
    for line in lines:
        if line["what"] == "step":
            first.setdefault(line["rank"], line)
    return first
