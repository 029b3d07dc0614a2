"""What an incident cost: the pause, and the steps that are made again."""

from __future__ import annotations

import dataclasses

import pytest

from spotrun.launcher.incident import SPEAK_S, Incidents, Mark, told
from spotrun.launcher.ledger import Cost
from spotrun.rendezvous.state import Member, Progress, Round

MEMBERS = (Member("a", "a-1", 2), Member("b", "b-1", 2))
ONE = Round(1, MEMBERS, "h", 1, "start", "2 nodes are here", 0, "x")
TWO = dataclasses.replace(ONE, number=2, members=MEMBERS[:1], kind="drained", reason="b left")
LOST = dataclasses.replace(TWO, kind="lost", reason="b lost")


def progress(step: int, round_number: int = 1) -> Progress:
    return Progress("a", "a-1", round_number, (step, step), step * 32, 0.5, None, step, 0)


def training(price: float | None = None) -> Incidents:
    """Round 1 has trained up to step 10, made at 100 s."""
    incidents = Incidents(price)
    incidents.round(ONE, 90.0)
    assert incidents.stepped(progress(1), 95.5) is not None
    assert incidents.stepped(progress(10), 100.0) is None
    return incidents


def test_a_drain_goes_through_its_phases_and_costs_a_pause_alone() -> None:
    incidents = training(price=36.0)
    incidents.sign("notice", 100.2)
    for name, at_s in (("agreed", 101.0), ("saved", 101.1)):
        incidents.mark(Mark(name, at_s, 12, 384, 101.0))
    incidents.left(101.2)
    incidents.round(TWO, 101.3)
    incidents.mark(Mark("restored", 101.4, 12, 384, 101.3))
    found = incidents.stepped(progress(13, 2), 102.0)
    assert found is not None
    assert [(phase.name, round(phase.seconds, 3)) for phase in found["phases"]] == [
        ("notice", 0.0),
        ("agreed", 0.8),
        ("saved", 0.1),
        ("left", 0.1),
        ("round", 0.1),
        ("restored", 0.1),
        ("first step", 0.6),
    ]
    assert found["cost"] == Cost(0.5, 0, 0, 0.5, 0.005), "a second without steps, half of which one step takes anyway"
    assert told(found) == "round 2 trains after 0.50 s; this cost 0.0050"


def test_what_is_not_in_the_restored_state_is_made_again() -> None:
    incidents = training()
    incidents.mark(Mark("broken", 101.5, 12, 384, 101.0))
    incidents.round(LOST, 101.6)
    incidents.mark(Mark("restored", 101.8, 9, 288, 101.7))
    found = incidents.stepped(progress(10, 2), 102.5)
    assert found is not None
    assert found["cost"] == Cost(1.0, 3, 96, 2.5, None), "1 s of pause and 3 steps of 0.5 s, on the node that is left"
    assert "from step 9 on: 3 to be made again" in told(found)


def test_what_saves_took_of_the_round_before_is_told_once() -> None:
    incidents = training()
    incidents.stepped(dataclasses.replace(progress(11), checkpoint_s=2.5), 100.5)
    for number in (2, 3):
        incidents.round(dataclasses.replace(LOST, number=number), 100.0 + number)
        found = incidents.stepped(progress(12, number), 101.0 + number)
        assert found is not None and found["cost"].checkpoint_s == (2.5 if number == 2 else 0.0)


def test_workers_that_died_had_come_as_far_as_they_last_told() -> None:
    incidents = training()
    incidents.sign("failed", 100.1)
    incidents.round(LOST, 100.5)
    incidents.started(100.6)
    incidents.mark(Mark("restored", 103.0, 4, 0, 102.9))
    found = incidents.stepped(progress(5, 2), 104.0)
    assert found is not None
    assert (found["cost"].steps_recomputed, found["cost"].samples_recomputed) == (6, 192)
    assert [phase.name for phase in found["phases"]][:2] == ["failed", "round"]


def test_scripts_that_tell_no_steps_cost_a_pause_until_they_were_started() -> None:
    incidents = Incidents(None)
    incidents.round(ONE, 10.0)
    incidents.started(12.0)
    assert incidents.due_s == pytest.approx(12.0 + SPEAK_S)
    found = incidents.silent()
    assert found is not None
    assert (found["cost"].paused_s, found["cost"].steps_recomputed) == (2.0, None)
    assert incidents.due_s is None


def test_a_notice_that_was_withdrawn_is_no_part_of_a_later_incident() -> None:
    incidents = training()
    incidents.sign("notice", 101.0)
    incidents.withdrawn()
    incidents.round(LOST, 500.0)
    assert incidents.phases()[0].name == "round"


def test_a_round_that_ends_before_its_first_step_belongs_to_the_same_incident() -> None:
    incidents = training()
    incidents.mark(Mark("broken", 101.0, 10, 320, 100.0))
    incidents.round(LOST, 101.2)
    incidents.mark(Mark("restored", 101.4, 10, 320, 101.3))
    incidents.round(dataclasses.replace(LOST, number=3), 102.0)
    assert incidents.stepped(progress(10, 2), 102.1) is None
    incidents.mark(Mark("restored", 102.4, 10, 320, 102.3))
    found = incidents.stepped(progress(11, 3), 103.5)
    assert found is not None
    assert (found["round"], found["cost"].paused_s) == (3, 3.0)


def test_what_a_worker_says_beyond_its_words_is_left_out() -> None:
    incidents = training()
    incidents.mark(Mark("anything", 101.0, 10, 320, 100.0))
    assert incidents.phases() == ()
