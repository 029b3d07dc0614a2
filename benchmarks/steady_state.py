"""What a launcher costs while nothing happens: the time of a training step under spotrun and under torchrun.

    python -m spotrun.benchmarks.steady_state [--nodes 2] [--blocks 20] [--block 25] [--passes 10] [--repeat 5]
                                      [--out FILE.json]

The launchers take turns. Each turn is a job of --nodes agents with one worker each; once it has warmed up, --blocks
blocks of --block steps are timed. `spotrun-api` also takes snapshots and agrees on each step.

    step_ms            the median block's seconds a step
    agents_cpu_share   CPU time of the agents themselves, of one core, for each node: hardly depends on what else the
                       machine does
    ratio              step_ms / that of torchrun in the same turn
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from spotrun.benchmarks.jobs_under_test import LAUNCHERS, JobUnderTest, Launcher
from spotrun.benchmarks.measurement import Measurement

ROWS = ("torchrun", "spotrun", "spotrun-api")
SCRIPT = Path(__file__).parent / "steady_steps.py"
TITLE = "Steady state: a training step while nothing happens"
HOW = (
    "The same DDP job, a step some 10 ms of matrix products on each rank, under each launcher in turns. ratio: the "
    "median step / torchrun's in the same turn. agents_cpu_share: what an agent itself uses of one core."
)
FEATURED = ("ratio", "step_ms", "agents_cpu_share")
WARM_BLOCKS = 4
LIMIT_S = 120.0


def measure(launcher: Launcher, options: argparse.Namespace) -> dict[str, float]:
    arguments = (str(options.passes), str(options.block))
    with JobUnderTest(launcher, f"1:{options.nodes}", script=SCRIPT, arguments=arguments) as job:
        for _ in range(options.nodes):
            job.start()

        def until_blocks(count: int) -> list[float]:
            job.until(f"{count} blocks", lambda: len(blocks(job)) >= count, LIMIT_S)
            return blocks(job)

        began_s = until_blocks(WARM_BLOCKS)[-1]
        before_s = agents_cpu_s(job)
        times = until_blocks(WARM_BLOCKS + options.blocks)
        used_s, passed_s = agents_cpu_s(job) - before_s, times[-1] - began_s
        steps_s = [line["step_s"] for line in job.lines if line["what"] == "block"][WARM_BLOCKS:]
    return {
        "step_ms": statistics.median(steps_s) * 1000,
        "agents_cpu_share": used_s / passed_s / options.nodes,
    }


def blocks(job: JobUnderTest) -> list[float]:
    """When each ended."""
    return [line["mono_s"] for line in job.look() if line["what"] == "block"]


def agents_cpu_s(job: JobUnderTest) -> float:
    """Of the agents, without their workers."""
    times = [psutil.Process(node.pid).cpu_times() for node in job.nodes]
    return sum(each.user + each.system for each in times)


def with_ratio(runs: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Those of one turn."""
    return {
        name: {"ratio": run["step_ms"] / runs["torchrun"]["step_ms"], **run} if "torchrun" in runs else run
        for name, run in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", default=",".join(ROWS), help=", ".join(LAUNCHERS))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--block", type=int, default=25, help="steps")
    parser.add_argument("--passes", type=int, default=10, help="forward passes a step")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = options.launchers.split(",")
    if unknown := [name for name in names if name not in LAUNCHERS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(LAUNCHERS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: every job is ended first
    settings = {name: getattr(options, name) for name in ("nodes", "blocks", "block", "passes")}
    document = Measurement("steady_state", TITLE, HOW, FEATURED, settings)
    for repeat in range(options.repeat):
        turn = names[repeat % len(names) :] + names[: repeat % len(names)]
        runs = with_ratio({name: measure(LAUNCHERS[name], options) for name in turn})
        for name in names:
            document.add(runs[name], launcher=name)
            print(f"{repeat + 1}/{options.repeat} {name}: {runs[name]}", file=sys.stderr)
        document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
