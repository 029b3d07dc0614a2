"""What of the work of a job with many preemptions counted, from the lines that its workers wrote. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Line = Mapping[str, Any]
Counts = Sequence[tuple[float, int]]  # (second, nodes from then on)

GAP_STEPS = 5  # training stands still where no step is made for as long as so many would take
POINTS = 400  # of a timeline's step curve: more than a plot shows


def steps_made(lines: Sequence[Line], until_s: float) -> list[Line]:
    """One line for each step of each rank, in the order of time."""
    made = (line for line in lines if line["what"] == "step" and line["mono_s"] <= until_s)
    return sorted(made, key=lambda line: float(line["mono_s"]))


def useful(made: Sequence[Line]) -> list[Line]:
    """Those steps that no later process group made again."""
    first: dict[int, int] = {}
    for line in made:
        first[line["group"]] = min(first.get(line["group"], line["step"]), line["step"])
    again_from: dict[int, float] = {}
    lowest = float("inf")
    for group in sorted(first, reverse=True):
        again_from[group] = lowest
        lowest = min(lowest, first[group])
    return [line for line in made if line["step"] < again_from[line["group"]]]


def figures(made: Sequence[Line], there: Counts, began_s: float, ended_s: float, step_s: float) -> dict[str, float]:
    """`there` counts its seconds from `began_s`, when the first world had begun to train.

    goodput: the steps of all nodes that counted / those that the nodes would have made that were there.
    progress: the steps of the job that counted / those of a job that is never interrupted while a node is there.
    lost_steps: steps of the job that were made and made again, or were never gone on from.
    redone: the share of the nodes' work that did not count.
    still_s: how long no step was made though a node was there.
    groups: the process groups that made a step.
    """
    made = [line for line in made if line["mono_s"] >= began_s]
    counted = useful(made)
    node_seconds = sum(count * seconds for seconds, count in spans(there, ended_s - began_s))
    capacity_s = sum(seconds for seconds, count in spans(there, ended_s - began_s) if count)
    steps_of_group: dict[int, set[int]] = {}
    for line in made:
        steps_of_group.setdefault(line["group"], set()).add(line["step"])
    job_steps = sum(map(len, steps_of_group.values()))
    counted_steps = len({line["step"] for line in counted})
    times = [began_s, *(line["mono_s"] for line in made), ended_s]
    still = [(a, b) for a, b in pairwise(times) if b - a > GAP_STEPS * step_s]
    return {
        "goodput": len(counted) * step_s / node_seconds,
        "progress": counted_steps * step_s / capacity_s,
        "lost_steps": job_steps - counted_steps,
        "redone": 1 - len(counted) / max(1, len(made)),
        "still_s": sum(seconds_with_nodes(there, a - began_s, b - began_s) for a, b in still),
        "groups": len(steps_of_group),
    }


def timeline(made: Sequence[Line], there: Counts, began_s: float, ended_s: float) -> dict[str, Any]:
    """What a plot needs: nodes there, nodes that train, and the step, by seconds from `began_s`."""
    made = [line for line in made if line["mono_s"] >= began_s]
    worlds: list[tuple[float, int]] = []
    group, last_s = None, began_s
    for line in made:
        if line["group"] != group:
            if worlds:
                worlds.append((last_s - began_s, 0))
            worlds.append((line["mono_s"] - began_s, line["world"]))
            group = line["group"]
        last_s = line["mono_s"]
    worlds.append((last_s - began_s, 0))
    curve = [(line["mono_s"] - began_s, line["step"]) for line in made]
    thinned = curve[:: max(1, len(curve) // POINTS)]
    nodes = [*there, (ended_s - began_s, there[-1][1])]
    return {
        "nodes": [(round(at_s, 2), count) for at_s, count in nodes],
        "worlds": [(round(at_s, 2), world) for at_s, world in worlds],
        "steps": [(round(at_s, 2), step) for at_s, step in thinned],
    }


def spans(there: Counts, length_s: float) -> list[tuple[float, int]]:
    """(seconds, nodes) of each stretch, up to `length_s`."""
    ends = [*(at_s for at_s, _ in there[1:]), length_s]
    return [(max(0.0, min(end_s, length_s) - at_s), count) for (at_s, count), end_s in zip(there, ends, strict=True)]


def seconds_with_nodes(there: Counts, from_s: float, to_s: float) -> float:
    """Of that stretch, how long any node was there."""
    ends = [*(at_s for at_s, _ in there[1:]), to_s]
    return sum(
        max(0.0, min(end_s, to_s) - max(at_s, from_s))
        for (at_s, count), end_s in zip(there, ends, strict=True)
        if count
    )
