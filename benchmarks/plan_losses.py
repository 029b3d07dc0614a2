"""How far off `spotrun plan` is about the wall time of a job that loses nodes: its goodput beside a measured one.

    python -m spotrun.benchmarks.plan_losses [--seconds 180] [--mean 20] [--nodes 3] [--seed 7] [--out FILE.json]

Nodes train, and one of them is killed without a word at times that a seed draws, --mean seconds apart on average; each
is replaced at once. What the plan is told beforehand is measured first, on the same job: the time of a step, saves
included, while nothing happens, and for how long no step is made around a loss and the join that follows it.

    spotrun        a script that saves each --save-every steps and goes on from there, after a loss and after a join
    spotrun-api    spotrun.run: the other nodes hold the state in memory, so that losses count as noticed ones

    predicted, measured    goodput: the steps that counted, of those that an undisturbed job makes meanwhile
    error                  of the wall time: predicted / measured - 1
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from spotrun.benchmarks.goodput_figures import GAP_STEPS, steps_made, useful
from spotrun.benchmarks.jobs_under_test import LAUNCHERS, JobUnderTest, Node
from spotrun.benchmarks.measurement import Measurement, some_of
from spotrun.checkpoint_policy import goodput

ROWS = ("spotrun", "spotrun-api")
TITLE = "The plan's error: the wall time of a job that loses nodes"
HOW = (
    "Agents on this machine, a step each 20 ms; one that trains is killed at random times and replaced at once. The"
    " plan is told the time of a step and of a restart as measured before, and how many losses there were. error: of"
    " the wall time, predicted / measured goodput - 1."
)
FEATURED = ("predicted", "measured", "error", "losses", "restart_s")
LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Told:
    """What the plan is told of a job: seconds of a step, and without one around a loss."""

    step_s: float
    restart_s: float
    keeps: bool  # other nodes hold the state: neither a loss nor a join leads back to a save

    def goodput(self, save_every: int, loss_s: float) -> float:
        """A script that saves by itself goes back twice: at the loss and at the join. A save's stall is in `step_s`."""
        interval_s = save_every * self.step_s
        if self.keeps:
            return goodput(interval_s, 0.0, loss_s, self.restart_s, noticed=1.0)
        return goodput(interval_s, 0.0, loss_s / 2, self.restart_s / 2)


def times_of_losses(seed: int, mean_s: float, seconds: float) -> list[float]:
    """At random: each moment is as likely as any other."""
    drawn, at_s = random.Random(seed), 0.0
    found = []
    while (at_s := at_s + drawn.expovariate(1 / mean_s)) < seconds:
        found.append(at_s)
    return found


def still_s(times_s: Sequence[float], step_s: float) -> float:
    """How long no step was made, beyond those that were due."""
    gaps = (b - a for a, b in pairwise(sorted(times_s)))
    return sum(gap - step_s for gap in gaps if gap > GAP_STEPS * step_s)


def step_times(made: Iterable[dict[str, Any]]) -> list[float]:
    """When each step was made that any rank made, once a group."""
    first: dict[tuple[int, int], float] = {}
    for line in made:
        first.setdefault((line["group"], line["step"]), line["mono_s"])
    return sorted(first.values())


class Run:
    """One job under one launcher."""

    def __init__(self, job: JobUnderTest, options: argparse.Namespace) -> None:
        self._job = job
        self._options = options
        self._drawn = random.Random(options.seed)

    def since(self, began_s: float) -> list[dict[str, Any]]:
        made = steps_made(self._job.look(), time.monotonic())
        return [dict(line) for line in made if line["mono_s"] >= began_s]

    def told(self) -> Told:
        """Nothing happens for a while; then nodes are lost one at a time."""
        for _ in range(self._options.nodes):
            self._job.start()
        self.whole()
        began_s = time.monotonic()
        time.sleep(self._options.calm)
        calm = step_times(self.since(began_s))
        step_s = (calm[-1] - calm[0]) / (len(calm) - 1)
        began_s = time.monotonic()
        for _ in range(self._options.rehearsals):
            self.lose_one()
            self.whole()
        restart_s = still_s(step_times(self.since(began_s)), step_s) / self._options.rehearsals
        return Told(step_s, restart_s, self._job.launcher.kind == "api")

    def whole(self) -> None:
        """All nodes train, and have done so for as long as it takes to save."""
        job = self._job
        job.last_group = job.until_world(self._options.nodes, LIMIT_S, job.last_group)
        time.sleep(self._options.save_every * self._options.step)

    def lose_one(self) -> None:
        self._job.kill_node(self._victim())
        self._job.start()

    def _victim(self) -> Node:
        """One that trains; while none does, one that did."""
        alive = {str(node.index): node for node in self._job.staying()}
        lines = [line for line in self._job.look() if line["what"] == "step" and line["node"] in alive]
        group = max((line["group"] for line in lines), default=0)
        names = sorted({line["node"] for line in lines if line["group"] == group} or alive)
        return alive[self._drawn.choice(names)]

    def measured(self, losses_s: Sequence[float], step_s: float) -> float:
        """The goodput under these losses."""
        before = max(line["step"] for line in self.since(0.0))
        began_s = time.monotonic()
        for at_s in losses_s:
            time.sleep(max(0.0, began_s + at_s - time.monotonic()))
            self.lose_one()
        time.sleep(max(0.0, began_s + self._options.seconds - time.monotonic()))
        counted = {line["step"] for line in useful(self.since(0.0)) if line["step"] > before}
        return len(counted) * step_s / float(self._options.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", type=some_of(ROWS), default=",".join(ROWS))
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--mean", type=float, default=20.0, help="seconds between losses")
    parser.add_argument("--calm", type=float, default=15.0, help="seconds for the time of a step")
    parser.add_argument("--rehearsals", type=int, default=3, help="losses for the time of a restart")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--step", type=float, default=0.02)
    parser.add_argument("--save-every", type=int, default=250, help="steps")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: every job is ended first
    settings = {name: getattr(options, name) for name in ("seconds", "mean", "nodes", "step", "save_every", "seed")}
    document = Measurement("plan_losses", TITLE, HOW, FEATURED, settings)
    for repeat in range(options.repeat):
        losses_s = times_of_losses(options.seed + repeat, options.mean, options.seconds)
        for name in options.launchers:
            with JobUnderTest(
                LAUNCHERS[name],
                f"1:{options.nodes}",
                step_s=options.step,
                save_every=options.save_every,
                checkpoints=True,
            ) as job:
                run = Run(job, options)
                told = run.told()
                measured = run.measured(losses_s, told.step_s)
            predicted = told.goodput(options.save_every, options.seconds / len(losses_s))
            found = {"predicted": predicted, "measured": measured, "error": predicted / measured - 1}
            document.add({**found, "losses": len(losses_s), "restart_s": told.restart_s}, launcher=name)
            document.write(options.out)
    print(document.table())


if __name__ == "__main__":
    main()
