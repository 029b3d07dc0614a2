"""The interval is the one that a simulation of losses finds best."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotrun.checkpoint_policy import (
    MAX_LOSS_S,
    MIN_LOSS_S,
    PRIOR_LOSS_S,
    Every,
    LossRate,
    SaveCost,
    daly,
    goodput,
    interval,
    mean_gap,
    parse_every,
    snapshot_steps,
    young,
)
from spotrun.errors import UsageError

# (stall C, mean time between losses M) in seconds: from rare losses to one every nine minutes
CASES = pytest.mark.parametrize(
    ("stall_s", "loss_s"), [(60, 15000), (60, 3600), (60, 900), (60, 540), (5, 900), (0.2, 3600)]
)
RESTART_S = 150.0


def simulate(interval_s: float, stall_s: float, loss_s: float, noticed: float = 0.0, losses: int = 20000) -> float:
    """The share of useful time in a job that loses its state at random, with equal luck for every interval."""
    rng = np.random.default_rng(0)
    gaps = iter(rng.exponential(loss_s, losses).tolist())
    announced = iter((rng.random(losses) < noticed).tolist())
    useful = wall = 0.0
    restart = 0.0
    for gap in gaps:
        wall += gap
        saved = next(announced)
        if gap < restart:  # lost again before training went on
            restart = RESTART_S if not saved else restart - gap
            continue
        alive = gap - restart
        if saved:
            useful += alive * interval_s / (interval_s + stall_s)
            wall += stall_s
        else:
            useful += alive // (interval_s + stall_s) * interval_s
        restart = RESTART_S
    return useful / wall


@CASES
def test_the_exact_goodput_is_the_simulated_one(stall_s: float, loss_s: float) -> None:
    best = daly(stall_s, loss_s)
    for interval_s in (best / 3, best, best * 3):
        exact = goodput(interval_s, stall_s, loss_s, RESTART_S)
        assert exact == pytest.approx(simulate(interval_s, stall_s, loss_s), abs=0.01)


@pytest.mark.parametrize("noticed", [0.5, 0.9, 1.0])
def test_goodput_with_notices_is_near_the_simulated_one(noticed: float) -> None:
    exact = goodput(300, 5, 3600, RESTART_S, noticed)
    assert exact == pytest.approx(simulate(300, 5, 3600, noticed), abs=0.01)


@CASES
def test_no_interval_is_better_by_a_thousandth(stall_s: float, loss_s: float) -> None:
    chosen = goodput(interval(stall_s, loss_s), stall_s, loss_s)
    best = max(goodput(t, stall_s, loss_s) for t in np.geomspace(stall_s / 10, loss_s * 5, 2000).tolist())
    assert chosen >= best * 0.999
    assert goodput(young(stall_s, loss_s), stall_s, loss_s) <= best


@CASES
def test_the_simulation_finds_no_better_interval(stall_s: float, loss_s: float) -> None:
    chosen = interval(stall_s, loss_s)
    for factor in (0.25, 0.5, 2.0, 4.0):
        assert simulate(chosen, stall_s, loss_s) > simulate(chosen * factor, stall_s, loss_s)


def test_the_published_figures_come_out() -> None:
    assert [round(daly(60, m)) for m in (15000, 3600, 900)] == [1302, 618, 290]
    assert [round(goodput(daly(60, m), 60, m, 150), 3) for m in (15000, 3600, 900)] == [0.904, 0.795, 0.574]


@given(st.floats(0.001, 1e4), st.floats(60, 1e7))
def test_goodput_is_a_share_and_the_interval_positive(stall_s: float, loss_s: float) -> None:
    chosen = interval(stall_s, loss_s)
    assert chosen > 0 and math.isfinite(chosen)
    assert 0 <= goodput(chosen, stall_s, loss_s, 60) <= 1


def test_saves_do_not_overlap() -> None:
    assert interval(0.1, 3600, durable_s=500) == 500
    assert interval(60, 3600, durable_s=5) == daly(60, 3600)
    assert goodput(1e9, 1, 60) == 0


def test_cheap_snapshots_are_made_every_step() -> None:
    assert snapshot_steps(snapshot_s=0.009, step_s=1.0, loss_s=3600) == 1
    assert snapshot_steps(snapshot_s=0.1, step_s=1.0, loss_s=3600) == round(daly(0.1, 3600))
    assert snapshot_steps(snapshot_s=50, step_s=100, loss_s=60) == 1


def test_the_loss_rate_moves_from_the_prior_to_what_is_seen() -> None:
    rate = LossRate()
    assert rate.loss_s == PRIOR_LOSS_S
    assert rate.observed(3600).loss_s == PRIOR_LOSS_S + 3600
    seen = rate
    for _ in range(200):
        seen = seen.observed(600, losses=1)
    assert seen.loss_s == pytest.approx(600, rel=0.05)
    assert LossRate().observed(1.0, losses=10**6).loss_s == MIN_LOSS_S
    assert LossRate().observed(1e12).loss_s == MAX_LOSS_S


def test_a_storm_is_believed_after_a_few_losses() -> None:
    assert LossRate().observed(15, losses=3).loss_s < 60
    assert LossRate().observed(600, losses=5).loss_s < 300, "one each two minutes"
    assert LossRate().observed(5, losses=1).loss_s < 600


def test_one_loss_does_not_undo_a_quiet_time() -> None:
    week = 7 * 24 * 3600.0
    assert LossRate().observed(week, losses=1).loss_s > week
    assert LossRate().observed(PRIOR_LOSS_S, losses=1).loss_s > PRIOR_LOSS_S


@given(st.integers(0, 1000), st.floats(0, 1e8), st.floats(0.1, 1e6))
def test_more_losses_make_the_gap_shorter_and_more_time_makes_it_longer(
    losses: int, seconds: float, more_s: float
) -> None:
    gap = mean_gap(PRIOR_LOSS_S, losses, seconds)
    assert mean_gap(PRIOR_LOSS_S, losses + 1, seconds) < gap < mean_gap(PRIOR_LOSS_S, losses, seconds + more_s)


@pytest.mark.parametrize("loss_s", [120.0, 3600.0, 14400.0, 7 * 24 * 3600.0])
def test_while_the_rate_is_learned_little_is_lost_to_who_knows_it(loss_s: float) -> None:
    """Goodput of jobs of twenty losses, each interval by what was seen so far, beside the best interval's."""
    stall_s = loss_s / 1000
    best = goodput(interval(stall_s, loss_s), stall_s, loss_s)
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(200):
        rate = LossRate()
        for gap_s in rng.exponential(loss_s, 20).tolist():
            rate = rate.observed(gap_s, losses=1)
            shares.append(goodput(interval(stall_s, rate.loss_s), stall_s, loss_s))
    assert np.mean(shares) > 0.97 * best


def test_the_cost_is_what_training_loses() -> None:
    cost = SaveCost().measured(blocked_s=0.1, durable_s=10.1, slow_down=0.05)
    assert cost.stall_s == pytest.approx(0.6)
    for _ in range(30):
        cost = cost.measured(blocked_s=0.2, durable_s=5.0)
    assert cost.stall_s == pytest.approx(0.2, rel=0.01)
    assert cost.durable_s == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize(
    ("text", "every"),
    [
        ("500steps", Every("steps", 500)),
        ("1step", Every("steps", 1)),
        ("10min", Every("seconds", 600)),
        ("90s", Every("seconds", 90)),
        ("1.5 h", Every("seconds", 5400)),
        (" AUTO ", Every()),
    ],
)
def test_how_often_can_be_said(text: str, every: Every) -> None:
    assert parse_every(text) == every


@pytest.mark.parametrize("text", ["", "500", "0steps", "1.5steps", "-3min", "10 days", "min", "autos"])
def test_what_makes_no_sense_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="500steps, 10min"):
        parse_every(text)


def test_a_save_is_due_by_steps_seconds_or_cost() -> None:
    cost, losses = SaveCost(stall_s=1.0, durable_s=20.0), LossRate()
    assert not Every("steps", 5).due(4, 1e9, cost, losses)
    assert Every("steps", 5).due(5, 0, cost, losses)
    assert not Every("seconds", 60).due(100, 59, cost, losses)
    assert Every("seconds", 60).due(1, 60, cost, losses)
    assert not Every("seconds", 5).due(1, 19, cost, losses), "the save before may not be durable yet"
    assert Every().due(1, 0, SaveCost(), losses), "the first save shows what one costs"
    best = daly(1.0, PRIOR_LOSS_S)
    assert not Every().due(10, best - 1, cost, losses)
    assert Every().due(10, best + 1, cost, losses)
    assert not Every().due(0, best + 1, cost, losses), "nothing has changed since the last save"
