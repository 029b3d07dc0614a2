"""The page: one HTML file without scripts, fonts or anything from elsewhere. Light and dark follow the reader's."""

from __future__ import annotations

import html
import time
from collections.abc import Iterable
from dataclasses import dataclass

from spotrun.launcher.ledger import Entry
from spotrun.report.draw import bars, line, steps
from spotrun.report.history import History
from spotrun.utilisation import starving

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2024; --soft: #5f6b76; --rule: #dfe3e8;
  --useful: #2a78b5; --recomputed: #c4472f; --checkpoint: #3f9142;
  --waiting: #dd9a1f; --restart: #8160b3; --absent: #eef1f4; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181c; --ink: #e6e9ec; --soft: #98a3ad; --rule: #2d343b;
  --useful: #5aa5dd; --recomputed: #e5715b; --checkpoint: #6cbf6f;
  --waiting: #e6b450; --restart: #a98bd6; --absent: #20262c; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1100px; padding: 24px 20px 48px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
h1 { font-size: 22px; margin: 0 } h2 { font-size: 16px; margin: 32px 0 8px } p { margin: 4px 0; color: var(--soft) }
svg { display: block; width: 100% }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; margin-top: 16px }
.figures div { border: 1px solid var(--rule); border-radius: 6px; padding: 10px 12px }
.figures b { display: block; font-size: 20px; font-weight: 600 } .figures span { color: var(--soft); font-size: 13px }
.lane { display: grid; grid-template-columns: 110px 1fr; gap: 10px; align-items: center; margin: 3px 0 }
.lane > span { overflow-wrap: anywhere; font-size: 13px; line-height: 1.25 }
.lane svg { background: var(--absent); border-radius: 3px }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: 12px; margin-left: 120px }
.area { fill: var(--useful); opacity: .35 } .line { fill: none; stroke: var(--useful); stroke-width: 2;
  vector-effect: non-scaling-stroke }
.training, .useful { fill: var(--useful); background: var(--useful) }
.recomputed { fill: var(--recomputed); background: var(--recomputed) }
.checkpoint { fill: var(--checkpoint); background: var(--checkpoint) }
.paused, .waiting { fill: var(--waiting); background: var(--waiting) }
.restoring, .restart { fill: var(--restart); background: var(--restart) }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--soft); margin: 6px 0 }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 5px }
.key i.absent { background: var(--absent); border: 1px solid var(--rule) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { text-align: left; padding: 6px 10px 6px 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { font-weight: 600; color: var(--soft) } .n { text-align: right; font-variant-numeric: tabular-nums }
@media (max-width: 600px) { .lane { grid-template-columns: 64px 1fr } .axis { margin-left: 74px } }
"""
_PARTS = (
    ("useful", "useful"),
    ("recomputed", "made again"),
    ("checkpoint", "snapshots and saves"),
    ("waiting", "waiting for a round"),
    ("restart", "restart and restore"),
)


@dataclass(frozen=True, slots=True)
class Prices:
    """Per node and hour, in whatever money; None: not known."""

    paid: float | None = None
    on_demand: float | None = None


def page(job: str, history: History, prices: Prices) -> str:
    body = [_head(job, history), _figures(history, prices), _world(history), _lanes(history), _curves(history)]
    body += [_goodput(history), _cost(history, prices), _incidents(history), _places(history)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{html.escape(job)}: spotrun report</title>'
        f"<style>{_STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _head(job: str, history: History) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(history.began_wall_s))
    return f"<h1>{html.escape(job)}</h1><p>from {began} UTC; {html.escape(history.ended or 'still running')}</p>"


def _figures(history: History, prices: Prices) -> str:
    told = [
        (_duration(history.length_s), "wall time"),
        (f"{history.split.goodput:.1%}", "goodput"),
        (str(max(0, len(history.rounds) - 1)), "changes of the world"),
        (str(sum(it.cost.steps_recomputed or 0 for it in history.incidents if it.cost)), "steps made again"),
        (f"{history.split.total / 3600:.2f}", "node-hours"),
    ]
    if prices.paid is not None:
        told.append((f"{history.split.total / 3600 * prices.paid:.2f}", "cost"))
    return '<div class="figures">' + "".join(f"<div><b>{a}</b><span>{b}</span></div>" for a, b in told) + "</div>"


def _axis(history: History) -> str:
    marks = [_duration(history.length_s * share) for share in (0, 0.5, 1)]
    return '<div class="axis">' + "".join(f"<span>{it}</span>" for it in marks) + "</div>"


def _lane(name: str, drawing: str) -> str:
    return f'<div class="lane"><span title="{html.escape(name)}">{html.escape(name)}</span><div>{drawing}</div></div>'


def _world(history: History) -> str:
    top = max((it.world_size for it in history.rounds), default=0)
    points = [(it.start_s, float(it.world_size)) for it in history.rounds]
    sizes = " &gt; ".join(str(it.world_size) for it in history.rounds[:24])
    drawing = steps(points, history.length_s, top, 70, "world size over time")
    return f"<h2>World size</h2>{_lane(f'0 to {top}', drawing)}{_axis(history)}<p>{sizes} workers</p>"


def _lanes(history: History) -> str:
    rows = []
    for node in history.nodes:
        own = [it for it in history.spans if node in it.nodes]
        parts = [
            (it.start_s, it.end_s, it.state, f"round {it.round}: {it.state} for {_duration(it.end_s - it.start_s)}")
            for it in own
        ]
        rows.append(_lane(node, bars(parts, history.length_s, 18, f"what {node} did")))
    states = ("training", "paused", "restoring", "absent")
    key = "".join(f'<span><i class="{state}"></i>{state}</span>' for state in states)
    return f'<h2>Nodes</h2><div class="key">{key}</div>{"".join(rows)}{_axis(history)}'


def _curves(history: History) -> str:
    if len(history.points) < 2:
        where = "they are in the files of --log-dir, of jobs on the training API"
        return f"<h2>Steps and loss</h2><p>not in this ledger: {where}</p>"
    made = [(it.at_s, float(it.step)) for it in history.points]
    top = max(step for _, step in made)
    drawn = [_lane(f"step 0 to {top:g}", line(made, history.length_s, 0, top, 90, "steps over time"))]
    losses = [(it.at_s, it.loss) for it in history.points if it.loss is not None]
    if len(losses) > 1:
        low, high = min(loss for _, loss in losses), max(loss for _, loss in losses)
        drawing = line(losses, history.length_s, low, high, 120, "loss over time")
        drawn.append(_lane(f"loss {low:.4g} to {high:.4g}", drawing))
    return f"<h2>Steps and loss</h2>{''.join(drawn)}{_axis(history)}"


def _goodput(history: History) -> str:
    split, parts, rows, at = history.split, [], [], 0.0
    for name, what in _PARTS:
        seconds = getattr(split, name)
        share = seconds / split.total if split.total else 0.0
        if seconds:
            parts.append((at, at + seconds, name, f"{what}: {share:.1%}"))
        at += seconds
        rows.append(
            f'<tr><td><i class="{name}" style="display:inline-block;width:10px;height:10px"></i> {what}</td>'
            f'<td class="n">{_duration(seconds)}</td><td class="n">{share:.1%}</td></tr>'
        )
    bar = bars(parts, split.total, 22, "where the time of the nodes went")
    head = '<tr><th>node time</th><th class="n"></th><th class="n">share</th></tr>'
    return f"<h2>Goodput</h2>{bar}<table>{head}{''.join(rows)}</table>{_step(history)}"


def _step(history: History) -> str:
    """Where the time of a step goes."""
    if not history.shares:
        return ""
    told = {"compute": max(0.0, 1.0 - sum(history.shares.values())), **history.shares}
    text = ", ".join(f"{name} {share:.0%}" for name, share in told.items())
    return f"<p>a step, on average: {text}</p><p>{html.escape(starving(history.shares))}</p>"


def _cost(history: History, prices: Prices) -> str:
    if prices.paid is None:
        return "<h2>Cost</h2><p>give --price-per-node-hour, and --on-demand-price to compare with</p>"
    hours, useful = history.split.total / 3600, history.split.useful / 3600
    paid = hours * prices.paid
    lost = paid * (1 - history.split.goodput)
    text = f"{hours:.3f} node-hours at {prices.paid:g} are {paid:.4f}, of which {lost:.4f} came to nothing."
    if prices.on_demand is not None:
        full = useful * prices.on_demand
        change = f" ({paid / full - 1:+.0%})" if full else ""
        text += (
            f" On demand at {prices.on_demand:g}, uninterrupted, the same work takes {useful:.3f} node-hours and "
            f"{full:.4f}: {paid - full:+.4f}{change}."
        )
    return f"<h2>Cost</h2><p>{text}</p>"


def _incidents(history: History) -> str:
    if not history.incidents:
        return "<h2>Incidents</h2><p>none</p>"
    head = "".join(f"<th>{it}</th>" for it in ("at", "round", "why", "phases"))
    head += "".join(f'<th class="n">{it}</th>' for it in ("paused", "steps again", "node time", "money"))
    rows = "".join(_incident(it, history.began_wall_s) for it in history.incidents)
    return f'<h2>Incidents</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _incident(entry: Entry, began_s: float) -> str:
    cost = entry.cost
    numbers: Iterable[str] = ("", "", "", "")
    if cost is not None:
        again = "" if cost.steps_recomputed is None else str(cost.steps_recomputed)
        money = "" if cost.money is None else f"{cost.money:.4f}"
        numbers = (f"{cost.paused_s:.2f} s", again, f"{cost.node_s:.1f} s", money)
    phases = ", ".join(f"{it.name} {it.seconds:.2f}" for it in entry.phases)
    why = f"{entry.detail.get('cause', '')}: {entry.detail.get('reason', '')}"
    words = (_duration(entry.wall_s - began_s), str(entry.round), why, phases)
    cells = "".join(f"<td>{html.escape(it)}</td>" for it in words)
    return f"<tr>{cells}{''.join(f'<td class=n>{it}</td>' for it in numbers)}</tr>"


def _places(history: History) -> str:
    if not history.places:
        return ""
    head = "".join(f"<th>{it}</th>" for it in ("where", "region", "zone"))
    head += "".join(f'<th class="n">{it}</th>' for it in ("saves", "bytes"))
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(word)}</td>' for word in (it.name, it.region, it.zone))}"
        f'<td class="n">{"in memory" if it.saves is None else it.saves}</td>'
        f'<td class="n">{_size(it.size_bytes)}</td></tr>'
        for it in history.places
    )
    return f'<h2>Where the state was kept</h2><div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _size(size_bytes: int) -> str:
    for unit, most in (("B", 1e3), ("kB", 1e6), ("MB", 1e9)):
        if size_bytes < most:
            return f"{size_bytes / most * 1e3:.3g} {unit}"
    return f"{size_bytes / 1e9:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
