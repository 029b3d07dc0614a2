"""A plot of a benchmark's document, as SVG that is legible on a light and on a dark page.

The document of `rendezvous_scale` has curves, that of `goodput` timelines, that of `same_curve` losses; all others are
bars of medians, with the quartiles, one panel for each of the first figures.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from spotrun.benchmarks.measurement import featured, row_name, summary

GREY = "#808080"
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
PANELS = 3
STYLE: Any = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "svg.hashsalt": "spotrun",
}


def svg(document: Mapping[str, Any]) -> bytes:
    """The plot of that document."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    draw = {"rendezvous_scale": _curves, "goodput": _timelines, "same_curve": _losses}.get(document["benchmark"], _bars)
    with matplotlib.rc_context(STYLE):
        figure = draw(pyplot, document)
        figure.tight_layout()
        image = io.BytesIO()
        figure.savefig(image, format="svg", transparent=True)
        pyplot.close(figure)
    return image.getvalue()


def _bars(pyplot: Any, document: Mapping[str, Any]) -> Any:
    rows = [(row_name(row), row.get("summary") or summary(row["runs"])) for row in document["results"] if row["runs"]]
    names = [name for name in featured(document) if any(name in found for _, found in rows)][:PANELS]
    figure, axes = pyplot.subplots(1, len(names), figsize=(9, 0.8 + 0.3 * len(rows)), sharey=True, squeeze=False)
    launchers = [label.partition(",")[0] for label, _ in rows]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(dict.fromkeys(launchers))}
    for axis, name in zip(axes[0], names, strict=True):
        for place, ((_, found), launcher) in enumerate(zip(rows, launchers, strict=True)):
            middle = found.get(name, {}).get("median")
            if middle is not None:
                low, high = found[name]["q1"], found[name]["q3"]
                axis.barh(place, middle, color=colours[launcher])
                axis.plot([low, middle if high is None else high], [place, place], color=GREY, linewidth=1.5)
        axis.set_title(name)
        axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes[0][0].invert_yaxis()
    return figure


def _curves(pyplot: Any, document: Mapping[str, Any]) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 3.2))
    agents = [row["agents"] for row in document["results"]]
    for name, colour in zip(("join_s", "lost_s", "grow_s"), COLOURS, strict=False):
        found = [(row.get("summary") or summary(row["runs"]))[name]["median"] for row in document["results"]]
        axis.plot(agents, found, marker="o", color=colour, label=name)
    axis.set(xscale="log", yscale="log", xlabel="agents", ylabel="seconds")
    axis.legend()
    return figure


def _timelines(pyplot: Any, document: Mapping[str, Any]) -> Any:
    """For each launcher the nodes that are there, those that train, and the step."""
    lines = document["timelines"]
    figure, axes = pyplot.subplots(len(lines), 1, figsize=(9, 2.2 * len(lines)), sharex=True, squeeze=False)
    most = max((step for line in lines for _, step in line["steps"]), default=1)
    for axis, line in zip(axes[:, 0], lines, strict=True):
        times, there = zip(*line["nodes"], strict=True)
        axis.fill_between(times, there, step="post", color=GREY, alpha=0.2, linewidth=0, label="nodes there")
        times, training = zip(*line["worlds"], strict=True)
        axis.step(times, training, where="post", color=COLOURS[0], label="nodes training")
        axis.set(title=f"{line['trace']}, {line['launcher']}", ylabel="nodes", ylim=(0, None))
        steps = axis.twinx()
        steps.plot(*zip(*line["steps"], strict=True), color=COLOURS[1], label="step")
        steps.set(ylabel="step", ylim=(0, most * 1.05))
        steps.spines["right"].set_visible(True)
    axes[-1, 0].set_xlabel("seconds")
    handles = [*axes[0, 0].get_legend_handles_labels()[0], *steps.get_legend_handles_labels()[0]]
    axes[0, 0].legend(handles=handles, loc="lower left", ncols=3, bbox_to_anchor=(0, 1.15))
    return figure


def _losses(pyplot: Any, document: Mapping[str, Any]) -> Any:
    """For each job its losses over those of one process, the size of its world, and the differences."""
    curves = document["curves"]
    figure, axes = pyplot.subplots(len(curves), 2, figsize=(9, 2.2 * len(curves)), sharex=True, squeeze=False)
    for (left, right), curve in zip(axes, curves, strict=True):
        steps, losses, worlds = zip(*((at["step"], at["loss"], at["world"]) for at in curve["made"]), strict=True)
        left.plot(steps, curve["reference"], color=GREY, linewidth=4, alpha=0.4, label="one process")
        left.plot(steps, losses, color=COLOURS[0], linewidth=1, label="changing world")
        left.set(title=f"{curve['kind']}, {curve['dtype']}", ylabel="loss")
        nodes = left.twinx()
        nodes.step(steps, worlds, where="mid", color=COLOURS[1], linewidth=1, label="nodes")
        nodes.set(ylabel="nodes", ylim=(0, 5))
        nodes.spines["right"].set_visible(True)
        differences = [abs(a - b) for a, b in zip(losses, curve["reference"], strict=True)]
        right.plot(steps, differences, ".", markersize=2, color=COLOURS[0])
        right.set(yscale="log", title="difference of the losses")
    axes[-1, 0].set_xlabel("step")
    axes[-1, 1].set_xlabel("step")
    handles = [*axes[0, 0].get_legend_handles_labels()[0], *nodes.get_legend_handles_labels()[0]]
    axes[0, 0].legend(handles=handles, loc="lower left", ncols=3, bbox_to_anchor=(0, 1.15))
    return figure
