"""Every step is shared out exactly, whoever is there to take a share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spotrun.slices import Position, plan_step, share, steps_per_epoch


@given(st.integers(0, 100), st.integers(0, 100), st.integers(1, 40))
def test_shares_cover_everything_in_order_and_differ_by_one_at_most(start: int, length: int, parts: int) -> None:
    spans = [share(start, start + length, index, parts) for index in range(parts)]
    assert [at for span in spans for at in range(*span)] == list(range(start, start + length))
    lengths = [stop - first for first, stop in spans]
    assert max(lengths) - min(lengths) <= 1


@given(
    st.integers(1, 60), st.integers(1, 20), st.integers(1, 25), st.one_of(st.none(), st.integers(1, 5)), st.booleans()
)
def test_every_step_is_shared_exactly_and_weighs_one(
    n: int, batch: int, world_size: int, micro: int | None, drop_last: bool
) -> None:
    for step in range(steps_per_epoch(n, batch, drop_last)):
        plans = [plan_step(Position(0, step), n, batch, rank, world_size, micro) for rank in range(world_size)]
        positions = [at for rank in plans for plan in rank if plan.count for at in range(plan.start, plan.stop)]
        assert positions == list(range(step * batch, min((step + 1) * batch, n)))
        assert len({len(rank) for rank in plans}) == 1, "collectives would not match"
        assert [plan.is_last_micro for plan in plans[0]] == [False] * (len(plans[0]) - 1) + [True]
        assert sum(plan.weight for rank in plans for plan in rank) / world_size == pytest.approx(1)
        for plan in (plan for rank in plans for plan in rank):
            assert plan.stop > plan.start, "a loader cannot collate nothing"
            assert plan.stop - plan.start <= (micro or batch)
            assert plan.weight == plan.count * world_size / min(batch, n - step * batch)
