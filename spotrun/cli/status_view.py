"""How `spotrun status` looks: 80 columns, a job's state above and a line a node below. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spotrun.launcher.job_status import JobStatus, NodeStatus
from spotrun.rendezvous.state import Vitals
from spotrun.utilisation import starving
from spotrun.wording import plural

WIDTH = 80
NODES = 40  # more are summed up: a screen has not more lines
TONES = {"training": "green", "busy": "green", "leaving": "yellow", "starting": "cyan", "spare": "dim"}
ENDS = {"succeeded": "bold green", "failed": "bold red", "stopped": "bold yellow", "waiting": "bold yellow"}


def view(job: JobStatus, passed_s: float = 0.0) -> RenderableType:
    """`passed_s`: since the job was read."""
    parts: list[RenderableType] = [_head(job), *(Text(line) for line in lines(job))]
    if job.nodes:
        parts += [Text(), _nodes(job.nodes[:NODES], passed_s)]
    if len(job.nodes) > NODES:
        parts.append(Text(f"and {len(job.nodes) - NODES} more", style="dim"))
    parts += [Text(f"kept out: {it.node_id} ({it.reason})", style="yellow") for it in job.quarantine]
    return Group(*parts)


def _head(job: JobStatus) -> Text:
    size = f"{job.min_nodes}" if job.min_nodes == job.max_nodes else f"{job.min_nodes} to {job.max_nodes}"
    text = Text(f"{job.run_id}  ")
    text.append(job.state, style=ENDS.get(job.state, "bold green"))
    where = f"{plural(len(job.nodes), 'node')} of {size} here"
    if job.round:
        where = f"round {job.round}, world size {job.world_size} ({job.reason})"
    text.append("\n" if len(text) + 2 + len(where) > WIDTH else "  ")
    return text.append(where, style="dim")


def lines(job: JobStatus) -> list[str]:
    """What is known of the training."""
    found = []
    if job.step is not None:
        parts = [f"step {job.step}"]
        if job.step_s:
            parts.append(f"{1 / job.step_s:.2f} steps/s")
        if job.loss is not None:
            parts.append(f"loss {job.loss:.4g}")
        found.append("  ".join(parts))
        kept = ((job.snapshot_step, "in memory"), (job.replica_step, "on several nodes"), (job.durable_step, "durable"))
        found.append("saved: " + ", ".join(f"{step or 'none'} {where}" for step, where in kept))
    elif job.durable_step:
        found.append(f"saved: {job.durable_step} durable")
    if job.goodput is not None and (job.step is not None or job.state in ENDS):
        what = [plural(job.incidents, "incident"), f"{job.paused_s:.1f} s paused"]
        what.append(f"{plural(job.steps_recomputed, 'step')} made again")
        found.append(f"goodput {job.goodput:.1%}   {', '.join(what)}")
    if job.shares:
        order = ("compute", "communication", "data", "checkpoint")
        found.append("a step: " + ", ".join(f"{name} {job.shares[name]:.0%}" for name in order if name in job.shares))
    if hint := starving(job.shares):
        found.append(hint)
    return found


def _nodes(nodes: Sequence[NodeStatus], passed_s: float) -> Table:
    zoned = any(node.zone for node in nodes)
    table = Table(box=None, padding=(0, 2, 0, 0), width=WIDTH, pad_edge=False)
    table.add_column("NODE", overflow="ellipsis", no_wrap=True, ratio=1)
    for name in ("STATE", "RANKS", "STEP", "GPU", "CPU", "MEM"):
        table.add_column(name, no_wrap=True, justify="left" if name == "STATE" else "right")
    if zoned:
        table.add_column("ZONE", no_wrap=True, overflow="ellipsis", max_width=14)
    for node in nodes:
        state = node.state
        if node.seconds_left is not None:
            state += f" {max(0.0, node.seconds_left - passed_s):.0f} s"
        cells: list[str | Text] = [
            node.node,
            Text(state, style=TONES.get(node.state, "")),
            ranks(node),
            _number(node.step),
        ]
        cells += [gpus(node.vitals), cpu(node.vitals), used(node.vitals), *([Text(node.zone)] if zoned else [])]
        table.add_row(*cells)
    return table


def ranks(node: NodeStatus) -> str:
    if node.first_rank is None:
        return "-"
    last = node.first_rank + node.nproc - 1
    return f"{node.first_rank}" if last == node.first_rank else f"{node.first_rank}-{last}"


def gpus(vitals: Vitals | None) -> str:
    if vitals is None or not vitals.gpus:
        return "-"
    return f"{len(vitals.gpus)} x {sum(gpu.busy_share for gpu in vitals.gpus) / len(vitals.gpus):.0%}"


def cpu(vitals: Vitals | None) -> str:
    return "-" if vitals is None else f"{vitals.cpu_share:.0%}"


def used(vitals: Vitals | None) -> str:
    if vitals is None or not vitals.memory_bytes:
        return "-"
    return f"{1 - vitals.memory_free_bytes / vitals.memory_bytes:.0%}"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
