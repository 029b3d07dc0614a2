"""What the plan is asked to predict from a step of one's own."""

from __future__ import annotations

import pytest

from spotrun.benchmarks.plan_error import OWN, SHAPES, predictions


def test_ones_own_step_is_predicted_as_it_is_and_the_others_by_their_work() -> None:
    found = predictions(dict.fromkeys(SHAPES, 0.2), 1e12)
    assert found[OWN] == pytest.approx(0.2)
    assert found["twice as deep"] == pytest.approx(0.4)
    assert found["a quarter of the batch"] == pytest.approx(0.05)
    assert found["two nodes"] == pytest.approx(0.2), "each has a batch of its own"


def test_a_slow_network_is_what_two_nodes_wait_for() -> None:
    found = predictions(dict.fromkeys(SHAPES, 0.2), 1e8)
    hidden_s = 2 / 3 * 0.05
    moved_s = SHAPES[OWN].parameters * 4 / 1e8
    assert found["two nodes, a quarter of the batch"] == pytest.approx(0.05 + moved_s - hidden_s)
