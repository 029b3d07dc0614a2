"""What a campaign does follows from its seed alone."""

from __future__ import annotations

from tests.fault.kinds import KINDS
from tests.fault.schedule import plan


def test_a_seed_gives_the_same_faults_again_and_another_seed_others() -> None:
    assert plan(7, 50) == plan(7, 50)
    assert plan(7, 50) != plan(8, 50)


def test_every_kind_comes_up_and_lasts_as_long_as_it_says() -> None:
    planned = plan(1, 2000)
    assert {one.kind for one in planned} == set(KINDS)
    for one in planned:
        shortest, longest = KINDS[one.kind].for_s
        assert shortest - 0.01 <= one.for_s <= longest + 0.01
