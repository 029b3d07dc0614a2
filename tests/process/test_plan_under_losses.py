"""The wall time that a plan predicts for a job that loses nodes, against such a job."""

from __future__ import annotations

import argparse
import time

from spotrun.benchmarks.jobs_under_test import LAUNCHERS, JobUnderTest
from spotrun.benchmarks.plan_losses import Run
from tests.waiting import until

OPTIONS = argparse.Namespace(nodes=2, step=0.05, save_every=50, calm=3.0, rehearsals=2, seed=7)
# Of an interval between saves, where nodes are lost: as early as late, like at random.
MOMENTS = (5 / 6, 1 / 6, 1 / 2)
ERROR = 0.35  # docs/plan.md tells what was seen


def test_the_wall_time_under_losses_is_what_was_predicted() -> None:
    with JobUnderTest(
        LAUNCHERS["spotrun"], "1:2", step_s=OPTIONS.step, save_every=OPTIONS.save_every, checkpoints=True
    ) as job:
        run = Run(job, OPTIONS)
        told = run.told()

        def newest() -> int:
            return max(int(line["step"]) for line in job.look() if line["what"] == "step")

        first, began_s = newest(), time.monotonic()
        for share in MOMENTS:
            at = (newest() // OPTIONS.save_every + 1 + share) * OPTIONS.save_every
            until(f"step {at:g}", lambda at=at: newest() >= at)  # type: ignore[misc]
            run.lose_one()
            run.whole()
        steps, wall_s = newest() - first, time.monotonic() - began_s
    undisturbed_s = steps * told.step_s
    predicted_s = undisturbed_s / told.goodput(OPTIONS.save_every, wall_s / len(MOMENTS))
    print(f"{steps} steps in {wall_s:.1f} s; predicted {predicted_s:.1f} s, undisturbed {undisturbed_s:.1f} s; {told}")
    assert undisturbed_s * 1.2 < wall_s  # or losses cost too little to tell anything
    assert abs(predicted_s / wall_s - 1) < ERROR
