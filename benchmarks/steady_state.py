"""What a launcher costs while nothing happens: the time of a training step under spotrun and under torchrun.

    python -m spotrun.benchmarks.steady_state [--nodes 2] [--blocks 20] [--block 10] [--passes 5] [--repeat 5]
                                      [--out FILE.json]

One job of --nodes agents with one worker each is started under each launcher; then the jobs take turns, a block of
steps each, while the others wait, so that whatever else the machine does hits all alike. `spotrun-api` also takes
snapshots and agrees on each step. A run is --blocks turns of each.

    step_ms            the median block's time a step
    ratio              the median of: a block's time / that of torchrun's block in the same turn
    agents_cpu_share   CPU time of the agents themselves, of one core, for each node; they run on while their job waits,
                       so that ratio does not tell of it
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import psutil

from spotrun.benchmarks.jobs_under_test import LAUNCHERS, JobUnderTest
from spotrun.benchmarks.measurement import Measurement

BASELINE = "torchrun"
ROWS = (BASELINE, "spotrun", "spotrun-api")
SCRIPT = Path(__file__).parent / "steady_steps.py"
TITLE = "Steady state: a training step while nothing happens"
HOW = (
    "The same DDP job, a step of some matrix products on each rank, under each launcher; the jobs take turns block"
    " by block. ratio: the time of a block / torchrun's in the same turn. agents_cpu_share: what an agent itself uses "
    "of one core."
)
FEATURED = ("ratio", "step_ms", "agents_cpu_share")
WARM_BLOCKS = 10
LIMIT_S = 120.0


class Waiting:
    """A job that makes a block of steps when it is told to, and waits."""

    def __init__(self, job: JobUnderTest, nodes: int) -> None:
        self.job = job
        os.mkfifo(job.dir / "turns")
        self._turns = os.open(job.dir / "turns", os.O_RDWR)  # so that opening does not wait for the reader
        self._blocks = 0
        for _ in range(nodes):
            job.start()

    def close(self) -> None:
        os.close(self._turns)

    def block(self) -> float:
        """Seconds a step."""
        os.write(self._turns, b"x")
        self._blocks += 1
        self.job.until("a block", lambda: len(blocks(self.job)) >= self._blocks, LIMIT_S)
        return blocks(self.job)[-1]

    def agents_cpu_s(self) -> float:
        """Of the agents, without their workers."""
        times = [psutil.Process(node.pid).cpu_times() for node in self.job.nodes]
        return sum(each.user + each.system for each in times)


def measure(jobs: Mapping[str, Waiting], turns: int) -> dict[str, dict[str, float]]:
    """One run of each."""
    names = list(jobs)
    steps_s: dict[str, list[float]] = {name: [] for name in names}
    began_s, before_s = time.monotonic(), {name: job.agents_cpu_s() for name, job in jobs.items()}
    for turn in range(turns):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            steps_s[name].append(jobs[name].block())
    passed_s = time.monotonic() - began_s
    runs = {}
    for name, job in jobs.items():
        ratios = [mine / theirs for mine, theirs in zip(steps_s[name], steps_s[BASELINE], strict=True)]
        runs[name] = {
            "ratio": statistics.median(ratios),
            "step_ms": statistics.median(steps_s[name]) * 1000,
            "agents_cpu_share": (job.agents_cpu_s() - before_s[name]) / passed_s / len(job.job.nodes),
        }
    return runs


def blocks(job: JobUnderTest) -> list[float]:
    """Seconds a step of each so far."""
    return [line["step_s"] for line in job.look() if line["what"] == "block"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", default=",".join(ROWS), help=", ".join(LAUNCHERS))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--block", type=int, default=10, help="steps")
    parser.add_argument("--passes", type=int, default=5, help="forward passes a step")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = [BASELINE, *(name for name in options.launchers.split(",") if name != BASELINE)]
    if unknown := [name for name in names if name not in LAUNCHERS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(LAUNCHERS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: every job is ended first
    arguments = (str(options.passes), str(options.block))
    settings = {name: getattr(options, name) for name in ("nodes", "blocks", "block", "passes")}
    document = Measurement("steady_state", TITLE, HOW, FEATURED, settings)
    with ExitStack() as stack:
        jobs: dict[str, Waiting] = {}
        for name in names:
            job = JobUnderTest(LAUNCHERS[name], f"1:{options.nodes}", script=SCRIPT, arguments=arguments)
            jobs[name] = Waiting(stack.enter_context(job), options.nodes)
            stack.callback(jobs[name].close)
        measure(jobs, WARM_BLOCKS)
        for repeat in range(options.repeat):
            for name, run in measure(jobs, options.blocks).items():
                document.add(run, launcher=name)
                print(f"{repeat + 1}/{options.repeat} {name}: {run}", file=sys.stderr)
            document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
