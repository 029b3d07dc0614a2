"""How the demo looks on a terminal: a scene in, something for rich to print out. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spotrun.demo.scene import NodeRow, Scene, Story
from spotrun.demo.timeline import Incident, Timeline

WIDTH = 78  # of 80 columns: the ^C that a terminal echoes must not wrap into a line that rich does not know of
STORIES = 12  # lines kept for what happened; the view never changes its height
NODES = 4
SPARK_WIDTH = 58
BARS = "▁▂▃▄▅▆▇█"
TONES = {"deed": "bold yellow", "round": "", "good": "green", "bad": "bold red"}
STATES = {"training": "green", "killed": "red", "left": "dim", "leaving": "yellow", "done": "green"}
RECENT_STEPS = 20


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """The means of `width` equal stretches, or of as many as there are values, from lowest to highest bar."""
    width = min(width, len(values))
    edges = [math.ceil(place * len(values) / width) for place in range(width + 1)] if width else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if not means:
        return ""
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def live(now: Scene) -> RenderableType:
    """The whole view, of constant size."""
    head = Table.grid(expand=True)
    head.add_column()
    head.add_column(justify="right")
    head.add_row(Text(progress(now), style="bold"), Text(f"{clock(now.passed_s)} of {clock(now.seconds)}"))
    nodes = Table.grid(padding=(0, 3))
    for width in (8, 20, 8):
        nodes.add_column(min_width=width)
    rows = [*now.nodes, *[NodeRow("", "", None)] * (NODES - len(now.nodes))]
    for row in rows:
        rank = f"rank {row.rank}" if row.rank is not None else ""
        nodes.add_row(row.node, Text(row.state, style=STATES.get(row.state, "")), Text(rank, style="dim"))
    told = [_line(story) for story in now.stories[-STORIES:]]
    told += [Text("")] * (STORIES - len(told))
    return Panel(
        Group(head, _losses(now.timeline), Text(""), nodes, Text(""), *told),
        title="spotrun demo: a small GPT learns Python while its nodes come and go",
        width=WIDTH,
    )


def progress(now: Scene) -> str:
    """One line: where training stands."""
    steps, rounds = now.timeline.steps, now.timeline.rounds
    if not rounds:
        return "starting etcd and the first nodes"
    current = rounds[-1]
    parts = [f"round {current.number}", f"world size {current.world}"]
    if steps:
        parts += [f"step {steps[-1].step}", f"loss {steps[-1].loss:.2f}"]
    if now.stalled_s is not None:
        parts.append(f"paused for {now.stalled_s:.0f} s")
    elif len(recent := [step for step in steps[-RECENT_STEPS:] if step.round == current.number]) > 1:
        step_s = (recent[-1].mono_s - recent[0].mono_s) / (len(recent) - 1)
        parts.append(f"{1000 * step_s:.0f} ms a step")
    return "  ".join(parts)


def _losses(now: Timeline) -> Text:
    if not now.steps:
        return Text("")
    losses = [step.loss for step in now.steps]
    return Text.assemble(f"{losses[0]:.2f} ", (sparkline(losses), "cyan"), f" {losses[-1]:.2f}")


def _line(story: Story) -> Text:
    line = Text.assemble((f"{clock(story.at_s):>5}  ", "dim"), (story.text, TONES[story.tone]))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def plain(story: Story) -> str:
    return f"{clock(story.at_s):>5}  {story.text}"


def name(incident: Incident) -> str:
    """What happened, in a few words."""
    deed = incident.deed
    if deed is None:
        return "; ".join(item.reason for item in incident.rounds)
    return {"kill": f"{deed.node} killed", "start": f"{deed.node} joined", "drain": f"{deed.node} reclaimed"}[deed.kind]


def summary(now: Timeline, passed_s: float, out: Path, picture: Path) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("what happened", header_style="bold")
    for heading in ("new round after", "survivors paused", "steps done again"):
        table.add_column(heading, justify="right", header_style="bold")
    for incident in now.incidents:
        # A newcomer first has to start Python and torch: how long that takes says nothing about anybody's reaction.
        sudden = incident.noticed_s is not None and incident.deed is not None and incident.deed.kind != "start"
        table.add_row(
            name(incident),
            f"{incident.noticed_s:.2f} s" if sudden else "",
            f"{incident.pause_s:.1f} s",
            str(incident.recomputed),
        )
    kept = f"The curve: {picture}\nMetrics, events and logs: {out}"
    return Group(Text(""), table, Text(""), Text(result(now, passed_s)), Text(kept))


def result(now: Timeline, passed_s: float) -> str:
    if not now.steps:
        return "No step was made."
    first, last = now.steps[0], now.steps[-1]
    worlds = len(now.incidents) + 1
    return (
        f"Loss {first.loss:.2f} -> {last.loss:.2f} in {last.step} steps ({now.recomputed} done again) "
        f"and {worlds} worlds, {clock(passed_s)} in all."
    )
