"""Which part of a tensor comes from where: every element once, from whoever has it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spotrun.boxes import CUT_BYTES, Box, moves, spread


def rows(size: int, parts: int) -> list[Box]:
    """A tensor of `size` rows of 3, cut as fully_shard cuts it."""
    each = -(-size // parts)
    cuts = [min(size, each * part) for part in range(parts + 1)]
    return [Box((start, 0), (end - start, 3)) for start, end in itertools.pairwise(cuts)]


@given(size=st.integers(1, 20), old=st.integers(1, 6), new=st.integers(1, 6), copies=st.integers(1, 3))
def test_resharding_fills_every_element_with_its_own_value(size: int, old: int, new: int, copies: int) -> None:
    whole = torch.arange(size * 3).view(size, 3)
    parts = {part: {"w": box} for part, box in enumerate(rows(size, old))}
    holders = {part: sorted({(part + copy) % new for copy in range(copies)}) for part in parts}
    for target, need in enumerate(rows(size, new)):
        if not need.numel:
            continue
        made = torch.full(need.size, -1)
        for move in moves(target, {"w": need}, parts, holders):
            assert move.source in holders[move.part]
            assert move.source == target or target not in holders[move.part], "what is at hand is not sent"
            made[move.box.within(need)] = whole[move.box.within(Box.whole(whole.shape))]
        assert torch.equal(made, whole[need.within(Box.whole(whole.shape))])


def test_a_box_held_twice_is_taken_once_and_where_it_is_at_hand() -> None:
    box = Box.whole((4,))
    for target in (0, 1):
        (move,) = moves(target, {"w": box}, {0: {"w": box}, 1: {"w": box}}, {0: [1], 1: [0]})
        assert move.source == target


def test_a_scalar_is_a_box_too() -> None:
    (move,) = moves(0, {"step": Box.whole(())}, {0: {"step": Box.whole(())}}, {0: [0]})
    assert move.box.within(Box.whole(())) == ()


def test_a_need_that_nobody_covers_is_named() -> None:
    with pytest.raises(KeyError, match="w"):
        moves(0, {"w": Box.whole((4,))}, {0: {"w": Box((0,), (3,))}}, {0: [0]})


def test_bytes_are_spread_evenly() -> None:
    shares = spread({name: ((size,), size) for name, size in (("a", 5), ("b", 4), ("c", 3), ("d", 3), ("e", 3))}, 2)
    assert sorted(map(sorted, shares)) == [["a", "d"], ["b", "c", "e"]]


@given(
    shapes=st.lists(st.lists(st.sampled_from([1, 7, 64, 2000]), max_size=3), max_size=5),
    parts=st.integers(1, 5),
    item_bytes=st.sampled_from([1, 1000, CUT_BYTES]),
)
def test_every_element_is_in_one_part(shapes: list[list[int]], parts: int, item_bytes: int) -> None:
    sizes = {str(index): (shape, math.prod(shape) * item_bytes) for index, shape in enumerate(shapes)}
    shares = spread(sizes, parts)
    for name, (shape, _) in sizes.items():
        boxes = [share[name] for share in shares if name in share]
        assert sum(box.numel for box in boxes) == math.prod(shape)
        assert not any(one.meet(other) for one, other in itertools.combinations(boxes, 2))


def test_a_tensor_larger_than_all_others_does_not_fall_to_one_part() -> None:
    sizes = {"embedding": ((50_000, 8), 64 * CUT_BYTES), "few rows": ((4, 90_000), 64 * CUT_BYTES), "bias": ((8,), 32)}
    for share in spread(sizes, 4):
        rows = sum(box.numel / math.prod(sizes[name][0]) for name, box in share.items() if name != "bias")
        assert 0.49 < rows < 0.51
