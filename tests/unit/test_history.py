"""The checker of the fault campaign finds what is wrong in histories written by hand, and nothing in a good one."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.fault.history import Commit, Fleet, Formed, Harm, History, Seen, Step, detections, pauses, violations

CURVE = {step: 1.0 / step for step in range(1, 100)}
KILLED = Harm("kill node", ("b",), at_s=3.0, healed_s=3.0)
NOTICE = Harm("notice", ("b",), at_s=3.0, healed_s=3.0, planned=True)


def steps(*made: tuple[int, int, int]) -> tuple[Step, ...]:
    """(step, round, world), a second each."""
    return tuple(Step(step, number, world, CURVE[step], float(at)) for at, (step, number, world) in enumerate(made))


def formed(number: int, *nodes: str, at_s: float = 0.0, restarts: int = 0) -> Formed:
    return Formed(number, nodes, "lost", restarts, at_s)


GOOD_STEPS = ((1, 1, 2), (2, 1, 2), (3, 1, 2), (3, 2, 1), (4, 2, 1))
GOOD = History(
    steps(*GOOD_STEPS),
    (formed(1, "a", "b", at_s=-1.0), formed(1, "a", "b", at_s=-0.9), formed(2, "a", at_s=2.9)),
    (Commit(2, 1, 2.5),),
    (dataclasses.replace(KILLED, at_s=2.5),),
    {"a": 0},
    snapshots_every=1,
)


def promises(**changes: Any) -> list[str]:
    return [found.promise for found in violations(dataclasses.replace(GOOD, **changes), CURVE, bound_s=2.0)]


def test_a_good_history_breaks_nothing_and_gives_the_figures() -> None:
    assert violations(GOOD, CURVE, bound_s=2.0) == []
    assert detections(GOOD) == {0: pytest.approx(0.4)}
    assert pauses(GOOD) == {0: 1.0}


def test_a_sample_seen_twice_a_process_left_and_a_job_that_does_not_end_are_told() -> None:
    assert promises(audit=("sample 3 twice",)) == ["exact data"]
    assert promises(left=("worker 17",)) == ["nothing left behind"]
    assert promises(exits={"a": 0, "c": 1}) == ["the job ends"]


def test_a_loss_that_one_process_does_not_have_is_told_though_its_step_was_made_again() -> None:
    bad = dataclasses.replace(GOOD.steps[2], loss=0.5)
    assert promises(steps=(*GOOD.steps[:2], bad, *GOOD.steps[3:])) == ["the same curve"]


def test_an_older_round_that_goes_on_is_told() -> None:
    assert promises(steps=(*GOOD.steps, *steps((4, 1, 2)))) == ["one world"]


def test_a_rank_that_stood_still_may_end_its_line_but_makes_no_further_step_with_others() -> None:
    frozen = (*GOOD.harms, Harm("stop node", ("a",), 1.0, 4.0, pauses=True))
    assert promises(steps=(*GOOD.steps, *steps((4, 1, 2))), harms=frozen) == []
    assert promises(steps=(*GOOD.steps, *steps((4, 1, 2), (5, 1, 2))), harms=frozen) == ["one world"]


def test_two_sizes_of_one_round_are_told() -> None:
    assert promises(steps=steps((1, 1, 2), (2, 1, 3))) == ["one world"]


def test_a_round_that_two_nodes_know_differently_is_told() -> None:
    assert promises(formed=(formed(1, "a", "b"), formed(1, "b", "a"), GOOD.formed[2])) == ["one world"]


def test_a_step_that_is_left_out_is_told_within_a_round_and_between_two() -> None:
    assert promises(steps=steps((1, 1, 2), (3, 1, 2))) == ["no step lost"]
    assert promises(steps=steps((1, 1, 2), (3, 2, 1)), commits=(), harms=(NOTICE,)) == ["no step lost"]
    died = (Harm("kill worker", (), 0.5, 0.5, charged=1),)  # rank 0, before it wrote its line
    assert promises(steps=steps((1, 1, 2), (3, 2, 1)), commits=(), harms=died) == []
    assert promises(steps=steps((1, 1, 2), (4, 2, 1)), commits=(), harms=died) == ["no step lost"]


def test_steps_made_again_are_told_after_notices_alone_and_beyond_what_a_loss_may_cost() -> None:
    assert promises(harms=(NOTICE,)) == ["notices cost no step"]
    long_ago = Harm("kill all nodes", (), at_s=-9.0, healed_s=-9.0)
    assert promises(harms=(NOTICE, long_ago)) == ["notices cost no step"]
    killed = Harm(
        "kill worker", (), 19.5, 19.5, charged=1
    )  # its loss is no longer made good when the next round begins
    lost_before = steps(*((step, 1, 1) for step in range(1, 21)), *((step, 2, 1) for step in range(5, 10)), (10, 3, 2))
    assert promises(steps=lost_before, commits=(), formed=(), harms=(killed,), snapshots_every=None) == []
    again = steps((1, 1, 2), (2, 1, 2), (3, 1, 2), (2, 2, 1))
    assert promises(steps=again, commits=(), harms=(dataclasses.replace(KILLED, at_s=2.5),)) == ["bounded loss"]


def test_a_round_that_begins_before_what_was_committed_is_told() -> None:
    assert promises(commits=(Commit(3, 1, 2.6),)) == ["commits are kept"]


def test_a_commit_of_an_older_round_after_a_newer_one_made_that_step_is_told() -> None:
    assert promises(commits=(Commit(3, 1, 3.7),)) == ["fenced commits"]


def test_a_membership_change_that_is_charged_is_told_and_a_failed_worker_may_be() -> None:
    charged = (*GOOD.formed[:2], formed(2, "a", at_s=2.9, restarts=1))
    assert promises(formed=charged) == ["restarts are not charged"]
    assert promises(formed=charged, harms=(*GOOD.harms, Harm("kill worker", (), 2.0, 2.0, charged=1))) == []


def test_a_loss_that_is_noticed_too_late_is_told_unless_etcd_was_away_meanwhile() -> None:
    late = (*GOOD.formed[:2], formed(2, "a", at_s=6.0))
    assert promises(formed=late) == ["bounded detection"]
    assert promises(formed=late, harms=(*GOOD.harms, Harm("kill etcd", (), 2.0, 5.0, etcd=True))) == []


def test_nobody_misses_a_node_that_was_in_no_round() -> None:
    late = (*GOOD.formed[:2], formed(2, "a", "b", "c", at_s=12.0))
    assert promises(formed=late, harms=(*GOOD.harms, Harm("kill node", ("d",), 3.0, 3.0))) == []


def test_nobody_can_tell_of_a_round_that_none_has_survived() -> None:
    late = (*GOOD.formed[:2], formed(2, "c", at_s=9.0))
    assert promises(formed=late) == ["bounded detection"]
    assert promises(formed=late, harms=(*GOOD.harms, Harm("kill node", ("a",), 2.6, 2.6))) == []
    assert promises(formed=late, harms=(Harm("notice", ("a",), -2.0, -2.0, planned=True), *GOOD.harms)) == []
    later = Harm("notice", ("a",), 20.0, 20.0, planned=True)
    assert promises(formed=late, harms=(*GOOD.harms, later)) == ["bounded detection"], "it was there all the while"


FLEET = Fleet(
    want=2, most=3, max_price=4.0, again_s=5.0,
    seen=(Seen(-2.0, ("a", "b")), Seen(3.0, ("a",)), Seen(9.0, ())),
    asked={"a": 1.0, "b": 1.0, "c": 3.0}, released=("b",),
)  # fmt: skip


def of_fleet(**changes: Any) -> list[str]:
    return promises(fleet=dataclasses.replace(FLEET, **changes))


def test_a_pool_that_keeps_its_promises_breaks_nothing() -> None:
    assert of_fleet() == []


def test_more_machines_than_allowed_are_told_however_briefly_they_are_there() -> None:
    many = Seen(4.0, ("a", "b", "d", "e"))
    assert of_fleet(seen=(*FLEET.seen[:2], many, FLEET.seen[2])) == ["no more machines than allowed"]


def test_machines_that_are_too_dear_together_are_told() -> None:
    assert of_fleet(seen=(Seen(0.0, ("b", "c")),)) == []
    assert of_fleet(seen=(Seen(0.0, ("a", "b", "c")),)) == ["within the budget"]


def test_a_machine_that_is_given_back_though_no_pool_asked_for_it_is_told() -> None:
    assert of_fleet(released=("b", "somebody-else")) == ["only its own machines"]


def test_a_lost_machine_that_is_not_replaced_in_time_is_told_unless_more_is_done_meanwhile() -> None:
    alone = steps(*GOOD_STEPS, *((step, 2, 1) for step in range(5, 12)))
    assert promises(fleet=FLEET, steps=alone) == ["lost machines are replaced"]
    meanwhile = (*GOOD.harms, Harm("kill worker", (), 7.0, 7.0, charged=1))
    assert promises(fleet=FLEET, steps=alone, harms=meanwhile) == []
    back = steps(*GOOD_STEPS, (5, 3, 2), *((step, 3, 2) for step in range(6, 12)))
    assert promises(fleet=FLEET, steps=back) == []
