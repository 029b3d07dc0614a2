"""The table and the picture of options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spotrun.errors import UsageError
from spotrun.plan.cost import Option

_HEAD = ("NODES", "INSTANCE", "GPUS", "REGION", "KIND", "GB/GPU", "HOURS", "GOODPUT", "SAVE EVERY", "COST", "")


def table(options: Sequence[Option], count: int) -> str:
    """The first `count`, in columns, and what one node costs beside several."""
    rows = [_HEAD, *(_row(it) for it in options[:count])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    good = [it for it in options if not it.why_not]
    if not good:
        return "\n".join([*lines, "", "nothing will do: the last column says why"])
    one = next((it for it in good if it.nodes == 1), None)
    several = next((it for it in good if it.nodes > 1), None)
    if one and several:
        faster = one.wall_s / several.wall_s
        text = (
            f"one node: {one.offer.instance}, {one.cost:.2f}; several: {several.nodes} x {several.offer.instance}, "
            f"{several.cost:.2f}, {faster:.1f} times as fast"
        )
        lines += ["", text]
    return "\n".join(lines)


def _row(it: Option) -> tuple[str, ...]:
    every = f"{it.interval_s:.0f} s" if it.interval_s < float("inf") else "-"
    return (
        str(it.nodes),
        it.offer.instance,
        f"{it.nodes * it.offer.count} {it.offer.accelerator}",
        it.offer.region,
        "spot" if it.spot else "on demand",
        f"{it.memory_bytes / 1e9:.1f}",
        f"{it.wall_s / 3600:.2f}",
        f"{it.goodput:.1%}",
        every,
        f"{it.cost:.2f}",
        it.why_not,
    )


def draw(options: Sequence[Option], path: Path) -> None:
    """Cost against wall time. Raises UsageError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'spotrun[demo]'.") from None
    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).subplots()
    for spot, name, colour in ((True, "spot", "#2a78b5"), (False, "on demand", "#c4472f")):
        own = [it for it in options if it.spot is spot and not it.why_not]
        axes.scatter([it.wall_s / 3600 for it in own], [it.cost for it in own], s=18, color=colour, label=name)
    good = [it for it in options if not it.why_not]
    for it in {min(good, key=lambda it: it.cost), min(good, key=lambda it: it.wall_s)} if good else ():
        name = f"{it.nodes} x {it.offer.instance}"
        axes.annotate(name, (it.wall_s / 3600, it.cost), xytext=(6, 6), textcoords="offset points", fontsize=8)
    axes.set(xlabel="hours", ylabel="cost", xscale="log", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path)
