from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.planner import SavePlan

from spotrun.checkpoint.plan import CUTS_PER_RANK, SMALLEST_CUT_BYTES, Plan, divide, fingerprint, item_bytes, local_plan
from spotrun.checkpoint.staging import HostBuffer, PackedValues, room_for, source_tensor, stage
from spotrun.errors import CheckpointError


def replicated(state: dict[str, Any], world: int) -> Plan:
    return divide([local_plan(state)[1] for _ in range(world)])


def loads(plan: Plan) -> list[int]:
    return [sum(item_bytes(piece.item) for piece in mine) for mine in plan.pieces]


def test_one_large_tensor_is_shared_by_all_ranks() -> None:
    plan = replicated({"big": torch.empty(4096, 1024, device="meta"), "small": torch.empty(3, device="meta")}, 4)
    assert max(loads(plan)) - min(loads(plan)) <= SMALLEST_CUT_BYTES


def test_a_small_tensor_is_not_cut() -> None:
    plan = replicated({"a": torch.empty(100, device="meta"), "b": torch.empty(100, device="meta")}, 2)
    assert loads(plan) == [400, 400]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 2000)), min_size=1, max_size=8), st.integers(1, 5))
def test_every_element_is_written_once_and_the_shares_are_even(shapes: list[tuple[int, int]], world: int) -> None:
    state = {f"t{n}": torch.empty(shape, device="meta") for n, shape in enumerate(shapes)}
    plan = replicated(state, world)
    total = sum(4 * math.prod(shape) for shape in shapes)
    assert sum(loads(plan)) == total
    cut = max(SMALLEST_CUT_BYTES, total // (CUTS_PER_RANK * world))
    assert max(loads(plan)) - min(loads(plan)) <= cut + 4 * 2000  # a row more
    for key, tensor in state.items():
        rows: list[int] = []
        for chunk in plan.metadata.state_dict_metadata[key].chunks:  # type: ignore[union-attr]
            assert chunk.sizes[1] == tensor.shape[1] and chunk.offsets[1] == 0
            rows.extend(range(chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]))
        assert sorted(rows) == list(range(tensor.shape[0]))


def test_what_one_rank_alone_holds_stays_with_it() -> None:
    plans: list[SavePlan] = [local_plan({f"own.{rank}": torch.ones(5), "all": 1})[1] for rank in range(3)]
    plan = divide(plans)
    for rank in range(3):
        assert f"own.{rank}" in {piece.item.index.fqn for piece in plan.pieces[rank]}
    assert sum(piece.item.index.fqn == "all" for mine in plan.pieces for piece in mine) == 1


@pytest.mark.parametrize(
    "change", [{"a": torch.ones(4)}, {"a": torch.ones(3).double()}, {"b": torch.ones(3)}, {"a": 1}]
)
def test_a_plan_is_kept_while_only_values_change(change: dict[str, Any]) -> None:
    base = fingerprint(local_plan({"a": torch.ones(3), "n": 1})[0])
    assert fingerprint(local_plan({"a": torch.zeros(3), "n": 2})[0]) == base
    assert fingerprint(local_plan({"a": torch.ones(3), "n": 1, **change})[0]) != base


def test_staging_copies_the_named_part_and_nothing_else() -> None:
    state = {
        "w": torch.arange(1_200_000.0).reshape(1200, 1000),
        "t": torch.arange(6).reshape(2, 3).T,
        "s": torch.tensor(4),
    }
    planner, mine = local_plan(state)
    plan = divide([mine, mine])
    for pieces in plan.pieces:
        staged = stage(planner, pieces, HostBuffer(), PackedValues())
        sources = [source_tensor(planner, piece).clone() for piece in pieces]
        for value in state.values():
            value.add_(1)
        for one, source in zip(staged, sources, strict=True):
            assert isinstance(one.data, torch.Tensor) and torch.equal(one.data, source)
            assert one.data.untyped_storage().nbytes() == source.numel() * source.element_size()


def test_a_buffer_is_used_again() -> None:
    planner, mine = local_plan({"w": torch.ones(1000)})
    pieces, buffer = divide([mine]).pieces[0], HostBuffer()
    places = {one.data.data_ptr() for _ in range(3) for one in stage(planner, pieces, buffer, PackedValues())}  # type: ignore[union-attr]
    assert len(places) == 1 and room_for(pieces) == 4032


def test_equal_numbers_are_packed_once_and_different_ones_apart() -> None:
    packed = PackedValues()
    assert packed.pack("a", 0.5) is packed.pack("b", 0.5)
    assert len({packed.pack("k", value) for value in (0, 0.0, -0.0, False, None, "0", (0,), (0.0,), float("nan"))}) == 9


def test_a_value_that_needs_code_to_come_back_is_refused_with_its_key() -> None:
    with pytest.raises(CheckpointError, match=r"the state at 'user\.x' is a .*HostBuffer"):
        PackedValues().pack("user.x", HostBuffer())
