"""What a campaign does follows from its seed alone."""

from __future__ import annotations

from tests.fault import kinds, pool_kinds  # noqa: F401  (the faults)
from tests.fault.kind import KINDS
from tests.fault.schedule import plan

ALL = tuple(KINDS)


def test_a_seed_gives_the_same_faults_again_and_another_seed_others() -> None:
    assert plan(7, 50, ALL) == plan(7, 50, ALL)
    assert plan(7, 50, ALL) != plan(8, 50, ALL)


def test_every_kind_comes_up_and_lasts_as_long_as_it_says() -> None:
    planned = plan(1, 2000, ALL)
    assert {one.kind for one in planned} == set(KINDS)
    for one in planned:
        shortest, longest = KINDS[one.kind].for_s
        assert shortest - 0.01 <= one.for_s <= longest + 0.01
