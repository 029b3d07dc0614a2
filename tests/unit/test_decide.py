"""What an agent does next, without processes."""

from __future__ import annotations

import dataclasses

import pytest

from spotrun.errors import JobRefused
from spotrun.launcher.decide import Action, Situation, decide
from spotrun.rendezvous.membership import Standing
from spotrun.rendezvous.state import Drain, Member, Outcome, Round

ME = Member("a", "a-1", 1)
OTHER = Member("b", "b-1", 1)


def a_round(number: int, *members: Member) -> Round:
    return Round(number, members, "h", 1, "start", "", 0, "x")


def standing(current: Round | None = None, **changes: object) -> Standing:
    return dataclasses.replace(Standing("a", "a-1", joined=True, round=current), **changes)  # type: ignore[arg-type]


RUNNING = Situation(standing(a_round(1, ME)), "running", started_round=1, started_as="a-1")
COOPERATIVE = dataclasses.replace(RUNNING, cooperative=True, in_place=True)
DRAINS = {"a": Drain("a", 30.0, "spotrun drain")}
OUTCOME = Outcome("succeeded", "", "a")

ON_THEIR_WAY = dataclasses.replace(COOPERATIVE, standing=standing(a_round(2, ME)), released_for=2, on_their_way=True)


@pytest.mark.parametrize(
    ("now", "action"),
    [
        (Situation(standing()), Action.WAIT),
        (Situation(standing(a_round(1, OTHER))), Action.WAIT),  # a spare
        (Situation(standing(a_round(1, ME))), Action.START),
        (RUNNING, Action.WAIT),
        (dataclasses.replace(RUNNING, standing=standing(a_round(2, ME))), Action.ABORT),
        (dataclasses.replace(RUNNING, standing=standing(a_round(2, ME)), workers="none"), Action.START),
        (dataclasses.replace(RUNNING, standing=standing(a_round(2, OTHER))), Action.ABORT),
        (dataclasses.replace(RUNNING, standing=standing(None, incarnation="a-2")), Action.ABORT),  # fenced
        (dataclasses.replace(RUNNING, standing=standing(None)), Action.WAIT),  # etcd was emptied: nothing to obey yet
        (dataclasses.replace(RUNNING, workers="failed"), Action.REPORT),
        (dataclasses.replace(RUNNING, workers="failed", reported=True), Action.ABORT),
        (dataclasses.replace(RUNNING, workers="none", reported=True), Action.WAIT),
        (dataclasses.replace(RUNNING, workers="succeeded"), Action.REPORT),
        (dataclasses.replace(RUNNING, workers="succeeded", reported=True), Action.WAIT),
        (dataclasses.replace(COOPERATIVE, standing=standing(a_round(2, ME))), Action.RELEASE),
        (dataclasses.replace(COOPERATIVE, standing=standing(a_round(2, ME)), released_for=2), Action.WAIT),
        (ON_THEIR_WAY, Action.WAIT),
        (dataclasses.replace(ON_THEIR_WAY, hung=True), Action.RELEASE),  # without the agreed step
        (dataclasses.replace(ON_THEIR_WAY, hung=True, on_their_way=False), Action.WAIT),
        (dataclasses.replace(COOPERATIVE, standing=standing(a_round(2, ME)), released_for=2, ready=True), Action.ADMIT),
        (
            dataclasses.replace(COOPERATIVE, standing=standing(a_round(2, ME)), released_for=2, overdue=True),
            Action.ABORT,
        ),
        (dataclasses.replace(COOPERATIVE, standing=standing(a_round(2, OTHER))), Action.ABORT),
        (dataclasses.replace(COOPERATIVE, leaving=True, told=True), Action.WAIT),  # for the agreed step
        (dataclasses.replace(COOPERATIVE, leaving=True, told=True, ready=True), Action.STOP),
        (dataclasses.replace(COOPERATIVE, leaving=True, told=True, overdue=True), Action.STOP),
        (dataclasses.replace(COOPERATIVE, ready=True), Action.WAIT),  # a collective failed: the round will change
        (dataclasses.replace(COOPERATIVE, ready=True, agreed=True), Action.REPORT),  # the drain was withdrawn
        (dataclasses.replace(COOPERATIVE, hung=True), Action.REPORT),
        (dataclasses.replace(COOPERATIVE, hung=True, reported=True), Action.WAIT),  # for the round that is to come
        # A notice between two rounds: the next one is entered first, and the others hear of it there.
        (
            dataclasses.replace(
                COOPERATIVE, leaving=True, ready=True, agreed=True, standing=standing(a_round(2, ME)), released_for=2
            ),
            Action.ADMIT,
        ),
        (dataclasses.replace(COOPERATIVE, leaving=True, ready=True, agreed=True, reported=True), Action.WAIT),
        (dataclasses.replace(COOPERATIVE, leaving=True, ready=True, agreed=True, overdue=True), Action.TELL),
        (
            dataclasses.replace(
                COOPERATIVE, leaving=True, ready=True, agreed=True, standing=standing(a_round(1, ME), drains=DRAINS)
            ),
            Action.TELL,
        ),
        (dataclasses.replace(RUNNING, leaving=True), Action.TELL),
        (dataclasses.replace(RUNNING, leaving=True, told=True), Action.STOP),
        (dataclasses.replace(RUNNING, leaving=True, told=True, workers="none"), Action.LEAVE),
        (Situation(Standing("a", "a-1"), leaving=True), Action.LEAVE),  # before it has joined
        (dataclasses.replace(RUNNING, standing=standing(outcome=OUTCOME)), Action.STOP),
        (Situation(standing(outcome=OUTCOME), leaving=True), Action.FINISH),
        (Situation(standing(refused=JobRefused("no"))), Action.REFUSED),
    ],
)
def test_the_next_action(now: Situation, action: Action) -> None:
    assert decide(now) is action
