"""Snapshots in memory: always one whole, none that is torn or damaged, found again by whoever needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spotrun.errors import BadRecord
from spotrun.memory import Memory, PrivateShelf, Stamp, join
from spotrun.recall import Holding, Recall, choose
from spotrun.replicas import circle, targets
from spotrun.segment import Segment, decode_head
from spotrun.snapshots import free_bytes


def stamp(step: int, part: int = 0, parts: int = 1, round: int = 1) -> Stamp:
    return Stamp(round, step, part, parts, part, parts)


def state(value: float) -> dict[str, Any]:
    big = torch.full((300_000,), value)
    return {"model": {"w": big, "b": torch.tensor(value)}, "optimizer": [{"lr": 0.1, "m": torch.ones(3) * value}]}


def keep(memory: Memory, step: int, **settings: int) -> None:
    memory.keep(stamp(step, **settings), state(step), {"extra": {"step": step}, "rng": None, "final": False})
    assert memory.wait(20)


def found(shelf: PrivateShelf) -> tuple[int, dict[str, Any]] | None:
    recall = Recall(Memory(shelf, 0), None, 0)
    if recall.choice is None:
        return None
    return recall.choice.step, join(recall.rest()["state"], "", recall.fetch(None))


def newest(shelf: PrivateShelf) -> Segment:
    segments = [Segment(path) for path in shelf.segments().values()]
    return max((segment for segment in segments if segment.header()), key=lambda segment: segment.header().step)  # type: ignore[union-attr]


def test_the_newest_snapshot_is_found_by_a_process_that_did_not_write_it() -> None:
    shelf = PrivateShelf()
    for step in (1, 2, 3):
        keep(Memory(shelf, 0), step)  # a new worker each time: none overwrites the newest
        step_found, got = found(shelf) or (0, {})
        assert step_found == step
        assert torch.equal(got["model"]["w"], state(step)["model"]["w"])
        assert got["model"]["b"] == step
        assert got["optimizer"][0]["lr"] == 0.1
    assert len(shelf.segments()) == 2


def test_while_one_is_written_the_one_before_is_whole() -> None:
    shelf = PrivateShelf()
    memory = Memory(shelf, 0)
    keep(memory, 1)
    keep(memory, 2)
    segment = newest(shelf)
    header = segment.header()
    assert header is not None
    segment.receive(header)  # a writer that died before `publish`
    assert (found(shelf) or (0,))[0] == 1


@pytest.mark.parametrize("where", ["head", "rest", "data"])
def test_a_damaged_snapshot_is_not_used(where: str) -> None:
    shelf = PrivateShelf()
    memory = Memory(shelf, 0)
    keep(memory, 1)
    keep(memory, 2)
    segment = newest(shelf)
    header = segment.header()
    assert header is not None
    at = {"head": 0, "rest": header.head_bytes + 5, "data": header.data_at - 4096 + 777_777}[where]
    segment.contents(header)[at] ^= 64
    assert (found(shelf) or (0,))[0] == 1


def test_nothing_is_found_where_nothing_was_kept() -> None:
    assert found(PrivateShelf()) is None


def test_the_workers_of_a_node_keep_one_copy_together() -> None:
    shelf = PrivateShelf()
    for part in range(3):
        memory = Memory(shelf, part)
        keep(memory, 5, part=part, parts=3)
    step, got = found(shelf) or (0, {})
    assert step == 5
    assert torch.equal(got["model"]["w"], state(5)["model"]["w"])
    assert torch.equal(got["optimizer"][0]["m"], torch.ones(3) * 5)


def test_a_large_tensor_is_copied_by_all_workers_of_a_node() -> None:
    shelf = PrivateShelf()
    large = torch.randn(1000, 1200)
    for part in range(3):
        memory = Memory(shelf, part)
        memory.keep(stamp(5, part, 3), {"w": large, "b": torch.ones(())}, {"extra": {}, "rng": None, "final": False})
        assert memory.wait(20)
        assert memory.held_bytes() < large.nbytes / 2
    step, got = found(shelf) or (0, {})
    assert step == 5
    assert torch.equal(got["w"], large)


def test_a_step_of_which_a_part_is_missing_gives_way_to_the_one_before() -> None:
    shelf = PrivateShelf()
    memories = [Memory(shelf, part) for part in range(2)]
    for step in (7, 8):
        for part, memory in enumerate(memories):
            if (step, part) != (8, 1):
                keep(memory, step, part=part, parts=2)
    assert (found(shelf) or (0,))[0] == 7


def test_a_snapshot_larger_than_the_last_takes_more_memory() -> None:
    shelf = PrivateShelf()
    memory = Memory(shelf, 0)
    for size in (10, 10, 1_000_000, 1_000_000):
        memory.keep(stamp(size), {"w": torch.arange(size)}, {"extra": {}, "rng": None, "final": False})
    assert memory.wait(20)
    step, got = found(shelf) or (0, {})
    assert (step, len(got["w"])) == (1_000_000, 1_000_000)


def test_a_state_that_changes_its_shape_lies_where_it_belongs() -> None:
    shelf = PrivateShelf()
    memories = [Memory(shelf, 0), Memory(shelf, 1)]
    ones, long, half = torch.ones(2_000_000), torch.ones(400, 20_000), torch.ones(2_000_000, dtype=torch.float16)
    states: list[dict[str, Any]] = [{"w": ones}, {"w": ones * 2}, {"w": long}, {"w": long, "v": ones}, {"w": half}, {}]
    for step, one in enumerate(states, 1):
        for part, memory in enumerate(memories):
            memory.keep(stamp(step, part=part, parts=2), one, {"extra": {}, "rng": None, "final": False})
        assert all(memory.wait(20) for memory in memories)
        step_found, got = found(shelf) or (0, {})
        assert step_found == step and got.keys() == one.keys()
        assert all(torch.equal(got[name], one[name]) and got[name].dtype == one[name].dtype for name in one)
    memories[0].keep(stamp(9), states[0], {"extra": {}, "rng": None, "final": False})  # alone on its node from now on
    assert memories[0].wait(20) and torch.equal((found(shelf) or (0, {}))[1]["w"], ones)


def test_the_newest_round_counts_before_the_newest_step() -> None:
    held = {0: [Holding(0, "a", 3, 90, 0, 1), Holding(0, "b", 4, 80, 0, 1)]}
    choice = choose(held)
    assert choice is not None
    assert (choice.round, choice.step) == (4, 80)


def test_parts_may_lie_on_different_nodes_but_must_be_of_one_step() -> None:
    held = {
        0: [Holding(0, "a", 1, 8, 0, 3), Holding(0, "b", 1, 7, 0, 3)],
        1: [Holding(1, "a", 1, 8, 1, 3), Holding(1, "b", 1, 7, 1, 3), Holding(1, "c", 1, 7, 2, 3)],
    }
    choice = choose(held)
    assert choice is not None
    assert (choice.step, choice.holders) == (7, {0: [0], 1: [1], 2: [1]})


def test_copies_go_to_the_next_nodes_that_stay() -> None:
    nodes = [[0, 1], [2, 3], [4], [5, 6]]
    assert targets(nodes, 1, 1) == [3]
    assert targets(nodes, 3, 2) == [4, 6]
    assert targets(nodes, 6, 1) == [1]
    assert targets(nodes, 1, 1, leaving=[0, 1, 2, 3]) == [4]
    assert targets(nodes, 1, 9) == [3, 4, 6]
    assert targets([[0, 1]], 0, 1) == []


@pytest.mark.parametrize("data", [b"", b"[]", b'{"pieces":[["w","os",[1],[0],[1],0]],"about":{}}', b'{"pieces":[[1]]}'])
def test_a_head_that_another_node_garbled_is_an_error(data: bytes) -> None:
    with pytest.raises(BadRecord):
        decode_head(data)


def test_files_that_the_kernel_would_drop_count_as_free_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 500\n")
    assert free_bytes(tmp_path) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(tmp_path) > 1 << 20, "what the machine has"


def test_copies_go_to_another_zone_where_there_is_one() -> None:
    nodes = [[0], [1], [2], [3]]
    assert circle(nodes, [7, 7, 7, 7]) == nodes
    for zones in ([1, 1, 2, 2], [1, 2, 2, 1], [1, 2, 3, 1]):
        arranged = circle(nodes, zones)
        assert sorted(arranged) == nodes
        for rank in range(4):
            (target,) = targets(arranged, rank, 1)
            assert zones[target] != zones[rank]
    received = [targets(circle(nodes, [1, 1, 1, 2]), rank, 1)[0] for rank in range(4)]
    assert sorted(received) == [0, 1, 2, 3], "each keeps as many copies as before"
