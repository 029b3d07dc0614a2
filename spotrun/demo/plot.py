"""The loss curve as a picture, with what happened on it and the world size under it."""

from __future__ import annotations

from pathlib import Path

from spotrun.demo.timeline import Timeline
from spotrun.demo.view import name


def draw(now: Timeline, began_s: float, path: Path) -> None:
    """Write a PNG; the steps of each round are a line of their own, so that pauses are gaps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it would look for a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    for number in sorted({step.round for step in now.steps}):
        steps = [step for step in now.steps if step.round == number]
        upper.plot([step.mono_s - began_s for step in steps], [step.loss for step in steps], color="tab:blue", lw=1.2)
    for incident in now.incidents:
        start_s, end_s = incident.last.mono_s - began_s, incident.first.mono_s - began_s
        for axes in (upper, lower):
            axes.axvspan(start_s, end_s, color="0.88", lw=0)
        upper.annotate(
            f"{name(incident)}\npaused {incident.pause_s:.1f} s",
            ((start_s + end_s) / 2, 0.97),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=9,
        )
    times = [step.mono_s - began_s for step in now.steps]
    worlds = [step.world for step in now.steps]
    lower.step(times, worlds, where="post", color="tab:orange", lw=1.5)
    lower.set_ylim(0, max(worlds, default=1) + 0.5)
    lower.set_yticks(range(max(worlds, default=1) + 1))
    upper.set_title("A character-level GPT learns the source of Python while its nodes come and go")
    upper.set_ylabel("loss (nats a character)")
    lower.set_ylabel("world size")
    lower.set_xlabel("seconds since the demo began")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    figure.savefig(path)
