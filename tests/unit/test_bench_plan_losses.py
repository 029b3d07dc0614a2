"""What the plan is told of a job that loses nodes, and what it makes of it."""

from __future__ import annotations

import statistics

import pytest

from spotrun.benchmarks.plan_losses import Told, step_times, still_s, times_of_losses


def test_losses_come_at_random_at_the_mean_that_was_asked_for_and_the_same_again_for_a_seed() -> None:
    found = times_of_losses(7, 20.0, 180.0)
    assert found == times_of_losses(7, 20.0, 180.0) == sorted(found)
    assert found[0] > 0 and found[-1] < 180.0
    counts = [len(times_of_losses(seed, 20.0, 180.0)) for seed in range(200)]
    assert statistics.mean(counts) == pytest.approx(9.0, rel=0.1)


def test_steps_of_several_ranks_count_once_and_those_made_again_twice() -> None:
    lines = [
        {"group": 1, "step": 1, "mono_s": 0.0},
        {"group": 1, "step": 1, "mono_s": 0.01},
        {"group": 1, "step": 2, "mono_s": 0.1},
        {"group": 2, "step": 2, "mono_s": 2.1},
        {"group": 2, "step": 3, "mono_s": 2.2},
    ]
    assert step_times(lines) == [0.0, 0.1, 2.1, 2.2]
    assert still_s(step_times(lines), 0.1) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("keeps", "cost_s"),
    [(False, 3.0), (True, 1.0)],  # the restart, and half an interval at the loss and at the join that follows
)
def test_what_a_loss_costs_depends_on_whether_others_have_the_state(keeps: bool, cost_s: float) -> None:
    told = Told(step_s=0.02, restart_s=1.0, keeps=keeps)
    assert told.goodput(100, 1e9) == pytest.approx(1.0)
    assert told.goodput(100, 100.0) == pytest.approx(1 - cost_s / 100, abs=1e-3)
