"""How long a node has, and why it goes."""

from __future__ import annotations

import signal

import pytest

from spotrun.launcher.leaving import MARGIN_S, Leaving, unsaved
from spotrun.launcher.notices.notice import Grade, Notice
from spotrun.rendezvous.state import Drain


def notice(name: str, seconds_left: float, heard_s: float = 100.0) -> Notice:
    return Notice("aws", "preempt", Grade.WILL, seconds_left, heard_s, name, detail=f"spot {name}")


def test_without_a_reason_it_stays() -> None:
    assert not Leaving(30.0).wanted


def test_the_earliest_notice_counts_by_the_monotonic_clock() -> None:
    leaving = Leaving(30.0)
    leaving.notices = {"a": notice("a", 120.0), "b": notice("b", 20.0)}
    assert leaving.seconds_left(110.0) == 10.0
    assert leaving.time_for_workers_s(110.0) == 10.0 - MARGIN_S
    assert leaving.seconds_left(200.0) == 0.0
    assert leaving.record("n", 110.0) == Drain("n", 10.0, "aws", "spot a")


def test_a_short_notice_leaves_most_of_its_time_to_the_workers() -> None:
    leaving = Leaving(30.0)
    leaving.notices = {"a": notice("a", 2.0)}
    assert leaving.time_for_workers_s(100.0) == 1.75
    assert leaving.time_for_workers_s(101.5) == 0.25
    assert leaving.time_for_workers_s(102.0) == 0.0


def test_a_signal_gives_the_workers_their_grace() -> None:
    leaving = Leaving(30.0)
    leaving.signum = signal.SIGINT
    assert leaving.wanted
    assert leaving.time_for_workers_s(0.0) == 30.0 - MARGIN_S
    assert leaving.why(None) == "This node left the job: SIGINT."


def test_a_drain_from_elsewhere_brings_its_own_deadline() -> None:
    drain = Drain("n", 5.0, "spotrun drain")
    assert Leaving(30.0).seconds_left(0.0, drain) == 5.0
    assert Leaving(30.0).why(drain) == "This node left the job: spotrun drain."


@pytest.mark.parametrize(("also", "last"), [(False, True), (True, False)])
def test_withdrawing_the_last_notice_keeps_the_node(also: bool, last: bool) -> None:
    leaving = Leaving(30.0)
    leaving.notices = {"a": notice("a", 120.0)}
    if also:
        leaving.notices["b"] = notice("b", 60.0)
    assert leaving.withdraw(notice("a", 0.0)) is last
    assert leaving.wanted is also
    assert not leaving.withdraw(notice("never heard", 0.0))


def test_what_was_taken_back_is_not_in_force_though_etcd_still_shows_it_and_may_be_said_again() -> None:
    leaving = Leaving(30.0)
    leaving.notices["a"] = notice("a", 120.0)
    said, leaving.told = leaving.record("n", 100.0), True
    assert leaving.in_force(said) == said
    leaving.withdraw(notice("a", 0.0))
    assert leaving.in_force(said) is None and not leaving.told
    other = Drain("n", 5.0, "spotrun drain")
    assert leaving.in_force(other) == other and leaving.in_force(None) is None
    leaving.notices["a"] = notice("a", 120.0)
    assert leaving.in_force(leaving.record("n", 100.0)) == said, "as at first, to the word"


def test_what_is_not_known_to_be_safe_is_told() -> None:
    assert unsaved(failed=False, cooperative=False)[0] == "state_unknown"
    kind, why = unsaved(failed=False, cooperative=True)
    assert kind == "state_lost" and why.startswith("the workers here did not reach the end of a step in the time")
    assert unsaved(failed=True, cooperative=False)[1].startswith("a worker here failed before this node could leave")
