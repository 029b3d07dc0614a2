"""How long training stands still when a node dies, a worker dies, a node is told to go, or one more comes.

    python -m spotrun.benchmarks.recovery [--scenarios kill,worker,term,join,replace,cold] [--repeat 5]
                                  [--nodes 3] [--nproc 1]
                                  [--launchers spotrun,spotrun-cold,torchrun] [--with-defaults] [--out FILE.json]

The launchers take turns, so that a busy hour of the machine hits all of them. Each turn is a new job that goes through
the scenarios one after the other, each from a world that trains steadily (`replace` and `cold` have jobs of their own):

    kill    SIGKILL of one node                    term    SIGTERM of one agent
    worker  SIGKILL of one worker                  join    one more node is started
    replace SIGKILL of one node, while another one waits above the maximum
    cold    all nodes are started

The victim is the node with the last rank, never the one that holds torchrun's store: that job would end. A recovery
that takes longer than the limit of its launcher counts as infinitely long; none is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import signal
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from spotrun.benchmarks.jobs_under_test import LAUNCHERS, DidNotHappen, JobUnderTest, Launcher, Node
from spotrun.benchmarks.measurement import Measurement
from spotrun.benchmarks.recovery_figures import PHASES, Recovery, figures

SCENARIOS = ("kill", "worker", "term", "join", "replace", "cold")
ORDER = ("cold", "replace", "worker", "kill", "join", "term")  # in which one job can go through all but the first two
ALONE = ORDER[:2]
LOOK_S = 2.0
SETTLED = 0.05  # processors that a node uses which does nothing but wait
START_LIMIT_S = 90.0
TITLE = "Recovery: a node or worker dies, leaves or comes"
HOW = (
    "A DDP job on real agents and workers; SIGKILL of a node, of a worker, SIGTERM of an agent, one more node, a lost "
    "node with another one waiting, a cold start. "
    "From the event to the first step of every rank of the new world; the launchers take turns."
)
FEATURED = ("event_to_step_s", "pause_s", "lost_steps")


def measure(launcher: Launcher, scenarios: list[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """One run of each scenario. Those that fit follow each other in one job, each from a world that trains steadily."""
    runs: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        job: JobUnderTest | None = None
        for scenario in sorted(scenarios, key=ORDER.index):
            need = options.nodes - (scenario == "join")
            if job is not None and (scenario in ALONE or len(job.staying()) != need):
                stack.close()
                job = None
            if job is None:
                least = options.nodes - (scenario not in ALONE)
                job = JobUnderTest(
                    launcher, f"{least}:{options.nodes}", options.nproc, options.step, options.save_every
                )
                stack.enter_context(job)
            runs[scenario] = observe(job, scenario, need)
            if scenario in ALONE or not runs[scenario]["recovered"]:
                stack.close()
                job = None
    return runs


def observe(job: JobUnderTest, scenario: str, nodes: int) -> dict[str, Any]:
    """One event in a job of `nodes`, which are started if there are none; figures that did not come to be are None."""
    run: dict[str, Any] = {"load1": round(os.getloadavg()[0], 1)}
    nproc = job.nproc
    before: int | None = None
    try:
        event_s, size = time.monotonic(), nodes
        if not job.nodes:
            for _ in range(nodes):
                job.start()
        if scenario != "cold":
            before = job.last_group or job.until_world(nodes * nproc, START_LIMIT_S)
            time.sleep(random.uniform(0, job.step_s * job.save_every))  # at any moment between two checkpoints
            event_s, size = happen(job, scenario, before)
        group = job.until_world(size * nproc, job.launcher.limit_s, after_group=before or 0)
    except DidNotHappen as error:
        # A job that does not even start says nothing of the event; `why` tells it apart, and it counts all the same.
        print(f"{job.launcher.name}, {scenario}: {error}\n{job.tell()}", file=sys.stderr)
        censored = {name: None for name in FEATURED if scenario != "cold" or name == "event_to_step_s"}
        return {**run, "recovered": False, "why": str(error), **censored}
    job.last_group = group
    agents = {str(node.index): job.events(node) for node in job.staying()}
    found = figures(Recovery(event_s, before, group), job.lines, agents)
    return {**run, "recovered": True, **{name: round(value, 4) for name, value in found.items()}}


def happen(job: JobUnderTest, scenario: str, group: int) -> tuple[float, int]:
    """Make it happen: when, and how many nodes there are after it."""
    if scenario == "join":
        return job.start().launched_s, len(job.staying())
    victim, pid = choose(job, group)
    if scenario == "replace":
        settle(job, job.start())
    event_s = time.monotonic()
    if scenario in ("kill", "replace"):
        job.kill_node(victim)
    elif scenario == "term":
        victim.leaves = True
        victim.process.terminate()
    else:
        os.kill(pid, signal.SIGKILL)
    return event_s, len(job.staying())


def settle(job: JobUnderTest, node: Node) -> None:
    """Until a node that has nothing to do is done with its imports, whatever its launcher."""
    end_s = time.monotonic() + START_LIMIT_S
    used_s, share = 0.0, 1.0
    while share > SETTLED:
        if time.monotonic() > end_s:
            raise DidNotHappen(f"node {node.index} does not come to rest")
        time.sleep(LOOK_S)
        before_s, used_s = used_s, 0.0
        for process in job.processes(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                used_s += sum(process.cpu_times()[:2])
        share = (used_s - before_s) / LOOK_S


def choose(job: JobUnderTest, group: int) -> tuple[Node, int]:
    """The node of the last rank that is not on node 0, and that rank's process."""
    lines = [line for line in job.look() if line.get("group") == group and line["node"] != "0"]
    last = max(lines, key=lambda line: int(line["rank"]))
    return job.nodes[int(last["node"])], int(last["pid"])


# -- results


def median(runs: list[dict[str, Any]], name: str) -> float | None:
    """Of all runs that have the figure; infinite where most did not recover."""
    values = [math.inf if run[name] is None else float(run[name]) for run in runs if name in run]
    return statistics.median(values) if values else None


def shown(runs: list[dict[str, Any]], name: str, limit_s: float) -> str:
    values = [math.inf if run[name] is None else float(run[name]) for run in runs if name in run]
    if not values:
        return "-"
    places = 0 if name == "lost_steps" else 2
    low, middle, high = (
        f"> {limit_s:g}" if value == math.inf else f"{value:.{places}f}"
        for value in (min(values), statistics.median(values), max(values))
    )
    return f"{middle} ({low} - {high})"


def table(results: list[dict[str, Any]], baseline: str = "torchrun") -> str:
    """Markdown: one row a scenario and launcher, then the phases of each."""
    rows = ["| event | launcher | recovered | event -> first step s | pause s | lost steps | / torchrun |"]
    rows.append("|---|---|---|---|---|---|---|")
    base = {row["scenario"]: row["runs"] for row in results if row["launcher"] == baseline}
    for row in results:
        runs, limit_s = row["runs"], LAUNCHERS[row["launcher"]].limit_s
        came = sum(run["recovered"] for run in runs)
        cells = [row["scenario"], row["launcher"], f"{came}/{len(runs)}"]
        cells += [shown(runs, name, limit_s) for name in FEATURED]
        ours, theirs = median(runs, FEATURED[0]), median(base.get(row["scenario"], []), FEATURED[0])
        ratio = ours / theirs if ours is not None and theirs and max(ours, theirs) < math.inf else None
        rows.append(f"| {' | '.join(cells)} | {'-' if ratio is None else f'{ratio:.2f}'} |")
    rows += ["", "Median seconds of each phase (- : part of the next):", ""]
    rows.append(f"| event | launcher | {' | '.join(PHASES)} |")
    rows.append("|---" * (len(PHASES) + 2) + "|")
    for row in results:
        medians = [median(row["runs"], f"{phase}_s") for phase in PHASES]
        cells = ["-" if value is None else f"{value:.3f}" for value in medians]
        rows.append(f"| {row['scenario']} | {row['launcher']} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--launchers", default="spotrun,spotrun-cold,torchrun", help=", ".join(LAUNCHERS))
    parser.add_argument("--with-defaults", action="store_true", help="also torchrun's default timers: slow")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("--step", type=float, default=0.02, help="seconds a training step")
    parser.add_argument("--save-every", type=int, default=50, help="steps between checkpoints of a plain script")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [*options.launchers.split(","), *(["torchrun-defaults"] if options.with_defaults else [])]
    scenarios = options.scenarios.split(",")
    for given, known in ((names, LAUNCHERS), (scenarios, SCENARIOS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    if options.nodes < 2 or options.repeat < 1:
        parser.error("it takes two nodes for one to be lost, and one run")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: every job is ended first
    settings = {name: getattr(options, name) for name in ("nodes", "nproc", "step", "save_every")}
    document = Measurement("recovery", TITLE, HOW, FEATURED, settings)
    results = document.results
    results += [{"launcher": name, "scenario": scenario, "runs": []} for scenario in scenarios for name in names]
    try:
        for repeat in range(options.repeat):
            for name in names:
                for scenario, run in measure(LAUNCHERS[name], scenarios, options).items():
                    document.add(run, launcher=name, scenario=scenario)
                    took = run["event_to_step_s"]
                    told = f"{took:.2f} s" if took is not None else run["why"]
                    print(f"{repeat + 1}/{options.repeat} {scenario} {name}: {told}", file=sys.stderr)
                document.write(options.out)
    except KeyboardInterrupt:
        print("stopped: these are the runs so far", file=sys.stderr)
    print(table([row for row in results if row["runs"]]))


if __name__ == "__main__":
    main()
