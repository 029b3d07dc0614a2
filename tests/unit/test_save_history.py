"""What is known of saves and losses goes on with the state."""

from __future__ import annotations

import json

import pytest

from spotrun.checkpoint_policy import MAX_LOSS_S, MIN_LOSS_S, SaveCost
from spotrun.save_history import SaveHistory


def test_a_state_that_is_restored_after_a_loss_counts_it_once() -> None:
    history = SaveHistory()
    history.cost = SaveCost(0.5, 20.0, 1 << 30)
    history.durable_step = 70
    state = json.loads(json.dumps(history.state_dict(4)))
    planned, lost = SaveHistory(), SaveHistory()
    planned.load_state_dict(state, 5, unplanned=3)  # round 5 began as agreed, and so did 4
    lost.load_state_dict(state, 5, unplanned=5)
    assert planned.losses.losses == 0 and lost.losses.losses == 1
    assert lost.losses.loss_s == pytest.approx(MIN_LOSS_S)
    assert lost.cost == SaveCost(0.5, 20.0, 1 << 30) and lost.durable_step == 70
    again = SaveHistory()
    again.load_state_dict(lost.state_dict(5), 6, unplanned=5)
    assert again.losses.losses == 1


def test_the_loss_of_all_nodes_counts_when_the_job_goes_on_from_the_checkpoint() -> None:
    saved = SaveHistory()
    saved.load_state_dict(SaveHistory().state_dict(3), 4, unplanned=4)
    state = saved.state_dict(4)
    for round_number, unplanned in ((9, 9), (1, 1)):  # in the same etcd; in another, which counts rounds anew
        again = SaveHistory()
        again.load_state_dict(state, round_number, unplanned)
        assert again.losses.losses == 2


def test_nothing_was_lost_where_all_saved_before_they_went() -> None:
    saved = SaveHistory()
    saved.parting = True
    for round_number in (5, 1):
        again = SaveHistory()
        again.load_state_dict(saved.state_dict(4), round_number, unplanned=round_number)
        assert again.losses.losses == 0 and not again.parting


def test_time_without_a_loss_counts_across_rounds() -> None:
    history = SaveHistory()
    state = {**history.state_dict(1), "seconds": 1e12}
    history.load_state_dict(state, 2, unplanned=0)
    assert history.losses.loss_s == MAX_LOSS_S


def test_a_round_that_goes_on_from_memory_does_not_begin_to_count_anew_until_the_next_save() -> None:
    history = SaveHistory()
    history.begun(100)
    again = SaveHistory()
    again.load_state_dict(history.state_dict(1), 2, unplanned=0)
    assert again.since(130)[0] == 30
