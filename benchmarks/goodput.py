"""How much of the work counts when nodes keep being lost and replaced: a preemption trace, replayed in fast motion.

    python -m spotrun.benchmarks.goodput [--trace FILE | --seed 7] [--from-hours 0] [--nodes 4] [--compress 120]
                                 [--seconds 90] [--notice 1] [--repeat 3] [--out FILE.json]

FILE is a trace in one of the formats of `preemption_traces.py`; without it, one is generated. Of a larger cluster
every k-th node is taken. Each second loss comes --notice seconds after a SIGTERM, the others without a word. Nodes are
replayed as real agents on this machine; a node whose agent ends though it is there is started again at once, as a
supervisor would do.

Time runs --compress times as fast, but what a launcher does takes as long as ever. So what is measured is a far worse
day than that of the trace: with 120, a pause of 5 s stands for one of 10 minutes.

    spotrun-api   spotrun.run: state in memory, and a checkpoint when spotrun deems one due
    spotrun       the script of torchrun below, started by spotrun
    torchrun      saves with DCP each --save-every steps (50: about the best by Daly's formula for these losses), and
                  goes on from the last; its store stands on a host of its own, as etcd does for the others
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spotrun.benchmarks import goodput_figures, preemption_traces
from spotrun.benchmarks.jobs_under_test import LAUNCHERS, PORT, STORE, DidNotHappen, JobUnderTest, Launcher, Node
from spotrun.benchmarks.measurement import Measurement, some_of
from spotrun.benchmarks.preemption_traces import Change, NotATrace

ROWS = ("spotrun-api", "spotrun", "torchrun")
TITLE = "Goodput under a preemption trace"
HOW = (
    "Agents are started and ended as a trace of a spot cluster says, in fast motion: pauses weigh as many times more as"
    " time runs faster. goodput: the steps of all nodes that counted in the end, of those that the nodes that were "
    "there could have made. Half of the losses come with a SIGTERM before. torchrun and spotrun run the same script, "
    "which saves with DCP; spotrun-api uses spotrun.run."
)
FEATURED = ("goodput", "progress", "lost_steps", "redone", "still_s", "groups", "started_again")
HIGHER = ("goodput", "progress")
START_LIMIT_S = 120.0
LOOK_S = 0.05
AGAIN_S = 1.0  # how long a supervisor waits before it starts an agent again


def replay(job: JobUnderTest, changes: Sequence[Change], seconds: float, notice_s: float) -> tuple[float, int]:
    """Play it from a first world that trains: when that was, and how many agents had to be started again."""
    agents = {change.node: job.start() for change in changes if change.at_s == 0}
    job.until_world(len(agents), START_LIMIT_S)
    began_s = time.monotonic()
    due: list[tuple[float, str, str]] = [
        (change.at_s, change.what, change.node) for change in changes if change.at_s > 0
    ]
    losses = [change for change in changes if change.what == "remove"]
    due += [(max(0.0, loss.at_s - notice_s), "notice", loss.node) for loss in losses[::2]]
    again: dict[str, float] = {}
    started_again = 0
    for at_s, what, node in [*sorted(due), (seconds, "end", "")]:
        while (now_s := time.monotonic() - began_s) < at_s:
            ended = [name for name, agent in agents.items() if not agent.leaves and agent.process.poll() is not None]
            for name in ended:
                if now_s >= again.setdefault(name, now_s + AGAIN_S):
                    del again[name]
                    agents[name].leaves = True
                    agents[name] = job.start()
                    started_again += 1
            time.sleep(min(LOOK_S, at_s - now_s))
        if what == "add":
            agents[node] = job.start()
        elif what == "notice" and node in agents:
            _tell(agents[node])
        elif what == "remove":
            job.kill_node(agents.pop(node))
    return began_s, started_again


def _tell(agent: Node) -> None:
    agent.leaves = True
    agent.process.terminate()


def measure(launcher: Launcher, changes: Sequence[Change], options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """The figures of one run, and its timeline."""
    nnodes = f"1:{options.nodes}"
    if not launcher.etcd:  # any node may be lost
        launcher = replace(launcher, server=("-c", STORE, PORT))
    with JobUnderTest(launcher, nnodes, step_s=options.step, save_every=options.save_every, checkpoints=True) as job:
        try:
            began_s, started_again = replay(job, changes, options.seconds, options.notice)
        except DidNotHappen as error:
            print(f"{launcher.name}: {error}\n{job.tell()}", file=sys.stderr)
            return {"goodput": 0.0, "why": str(error)}, None
        ended_s = began_s + options.seconds
        made = goodput_figures.steps_made(job.look(), ended_s)
    there = preemption_traces.counts(changes)
    found = goodput_figures.figures(made, there, began_s, ended_s, options.step)
    run = {**{name: round(value, 4) for name, value in found.items()}, "started_again": started_again}
    return run, goodput_figures.timeline(made, there, began_s, ended_s)


def trace(options: argparse.Namespace) -> tuple[str, list[Change]]:
    """Its name, and what happens to the nodes in seconds of the replay. Raises NotATrace."""
    length_s = options.seconds * options.compress
    if options.trace is None:
        name = f"generated, seed {options.seed}"
        changes = preemption_traces.generate(options.seed, options.nodes, length_s)
    else:
        name = options.trace.stem
        all_changes = preemption_traces.parse(options.trace.read_text())
        thinned = preemption_traces.thin(all_changes, options.nodes)
        changes = preemption_traces.window(thinned, options.from_hours * 3600, length_s)
    if not any(change.at_s == 0 for change in changes):
        raise NotATrace("no node is there at its beginning: choose another --from-hours")
    return name, preemption_traces.compress(changes, options.compress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--from-hours", type=float, default=0.0, help="where in the file to begin")
    parser.add_argument("--launchers", type=some_of(ROWS), default=",".join(ROWS))
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--compress", type=float, default=120.0)
    parser.add_argument("--seconds", type=float, default=90.0, help="of the replay")
    parser.add_argument("--notice", type=float, default=1.0, help="seconds of the replay")
    parser.add_argument("--step", type=float, default=0.02, help="seconds a training step")
    parser.add_argument("--save-every", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    try:
        title, changes = trace(options)
    except (NotATrace, OSError) as error:
        parser.error(f"--trace {options.trace}: {error}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: every job is ended first
    settings = {
        name: getattr(options, name) for name in ("nodes", "compress", "seconds", "notice", "step", "save_every")
    }
    settings["losses"] = sum(change.what == "remove" for change in changes)
    settings["joins"] = sum(change.what == "add" and change.at_s > 0 for change in changes)
    document = Measurement("goodput", TITLE, HOW, FEATURED, settings, HIGHER)
    timelines: dict[str, Any] = {}
    for _ in range(options.repeat):
        for name in options.launchers:
            run, line = measure(LAUNCHERS[name], changes, options)
            document.add(run, launcher=name, trace=title)
            print(f"{name}: {run}", file=sys.stderr)
            if line is not None:
                timelines[name] = {"launcher": name, "trace": title, **line}
            document.extra["timelines"] = list(timelines.values())
            document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
