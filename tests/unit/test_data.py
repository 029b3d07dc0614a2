"""Every sample once an epoch, whatever happens to the world."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from spotrun.data import Batches
from spotrun.errors import DataError


class Numbers(Dataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


class Noisy(Numbers):
    """A sample and random augmentation of it, from every global generator."""

    def __getitem__(self, index: int) -> Any:
        return index, random.random(), np.random.rand(), torch.rand(1).item()


class Bulk(Numbers):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [-index for index in indices]


def world(n: int, size: int, **options: Any) -> list[Batches]:
    return [Batches(Numbers(n), rank=rank, world_size=size, **options) for rank in range(size)]


def take_step(ranks: list[Batches]) -> tuple[list[int], float]:
    """The samples of the next step over all ranks, in their order, and the sum of the weights; commits the step."""
    samples: list[int] = []
    weights = 0.0
    for batches in ranks:
        loop = iter(batches)
        for batch in loop:
            assert batches.sample_ids in ([], batch.tolist())
            samples += batches.sample_ids
            weights += batches.weight
            if batches.is_last_micro:
                break
        batches.advance()
        loop.close()  # type: ignore[attr-defined]
    return samples, weights


# Exactly once


@given(st.data())
def test_any_sequence_of_worlds_consumes_every_sample_once_an_epoch(data: st.DataObject) -> None:
    n, batch = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9))
    options: dict[str, Any] = {
        "global_batch_size": batch,
        "seed": data.draw(st.integers(0, 5)),
        "shuffle": data.draw(st.booleans()),
        "epochs": 2,
        "micro_batch_size": data.draw(st.one_of(st.none(), st.integers(1, 3))),
    }
    alone = world(n, 1, **options)
    expected = [take_step(alone)[0] for _ in range(2 * len(alone[0]))]
    ranks = world(n, data.draw(st.integers(1, 6)), **options)
    done: list[list[int]] = []
    changes = data.draw(st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 6)), max_size=8))
    for size, in_place, steps in [*changes, (2, False, 10**6)]:
        state = json.loads(json.dumps(ranks[0].state_dict()))
        if in_place and size <= len(ranks):
            ranks = ranks[:size]
            for rank, batches in enumerate(ranks):
                next(iter(batches), None)  # handed out and never stepped: not consumed
                batches.set_world(rank, size)
        else:
            ranks = world(n, size, **options)
            for batches in ranks:
                batches.load_state_dict(state)
        for _ in range(steps):
            if ranks[0].done:
                break
            samples, weights = take_step(ranks)
            assert weights == pytest.approx(len(ranks))
            done.append(samples)
    assert done == expected
    for epoch in (0, 1):
        steps = len(alone[0])
        seen = [sample for step in done[epoch * steps : (epoch + 1) * steps] for sample in step]
        assert sorted(seen) == list(range(n))


def test_epochs_have_other_orders_and_unshuffled_ones_the_same() -> None:
    first, second = [take_step(world(64, 1, global_batch_size=64, seed=seed))[0] for seed in (0, 1)]
    assert first != second
    batches = world(64, 1, global_batch_size=64, epochs=2)
    assert take_step(batches)[0] != take_step(batches)[0]
    batches = world(6, 1, global_batch_size=6, epochs=2, shuffle=False)
    assert take_step(batches)[0] == take_step(batches)[0] == list(range(6))


def test_the_incomplete_last_batch_can_be_dropped() -> None:
    ranks = world(10, 1, global_batch_size=4, drop_last=True)
    assert len(ranks[0]) == 2
    assert len(take_step(ranks)[0] + take_step(ranks)[0]) == 8
    assert ranks[0].done


def test_a_rank_without_samples_gets_one_that_counts_nothing() -> None:
    ranks = world(5, 4, global_batch_size=3, shuffle=False)
    batch = next(iter(ranks[3]))
    assert batch.tolist() == [0]
    assert (ranks[3].weight, ranks[3].sample_ids, ranks[3].step_ids) == (0.0, [], [])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_that_were_prefetched_or_handed_out_but_not_stepped_are_not_consumed(num_workers: int) -> None:
    batches = Batches(Numbers(40), global_batch_size=4, num_workers=num_workers)
    seen: list[int] = []
    for batch in batches:
        seen += batch.tolist()
        batches.advance()
        if batches.step == 3:
            break
    dropped = next(iter(batches))  # by now the workers have run ahead
    for batch in batches:
        if len(seen) == 12:
            assert batch.tolist() == dropped.tolist()
        seen += batch.tolist()
        batches.advance()
    assert sorted(seen) == list(range(40))
    assert batches.done
    batches.close()


def test_workers_and_process_give_the_same_batches() -> None:
    here = [batch.tolist() for batch in stepped(Batches(Numbers(50), global_batch_size=8, epochs=2))]
    there = Batches(Numbers(50), global_batch_size=8, epochs=2, num_workers=2)
    assert [batch.tolist() for batch in stepped(there)] == here
    there.close()


def stepped(batches: Batches) -> Any:
    for batch in batches:
        yield batch
        if batches.is_last_micro:
            batches.advance()


def test_a_loop_goes_on_in_another_world_when_it_changes_under_it() -> None:
    batches = Batches(Numbers(24), global_batch_size=6, shuffle=False)
    seen = []
    for batch in batches:
        seen.append(batch.tolist())
        if len(seen) == 2:
            batches.set_world(1, 3)  # before the step was committed: it is handed out again, as the new rank's part
            continue
        batches.advance()
    assert seen == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [8, 9], [14, 15], [20, 21]]


def test_a_billion_samples_start_anywhere_at_once() -> None:
    batches = Batches(range(10**9), global_batch_size=512, rank=3, world_size=7, epochs=None)
    batches.load_state_dict({**batches.state_dict(), "epoch": 5, "step": 1_900_000})
    loop = iter(batches)
    assert len(next(loop)) == 73
    assert batches.epoch == 5


# Epochs and loops


def test_epochs_count_restarts_in() -> None:
    first = Batches(Numbers(8), global_batch_size=4, epochs=2)
    loop = stepped(first)
    for _ in range(3):
        next(loop)
    loop.close()
    first.load_state_dict({**first.state_dict(), "epoch": 1, "step": 1})
    assert len(list(stepped(first))) == 1
    after = Batches(Numbers(8), global_batch_size=4, epochs=2)
    after.load_state_dict(first.state_dict())
    assert list(after) == [], "a job that had finished before it was restarted trains no further epoch"


def test_a_second_loop_after_the_last_epoch_is_an_error_and_not_silence() -> None:
    batches = Batches(Numbers(8), global_batch_size=4)
    assert len(list(stepped(batches))) == 2
    with pytest.raises(DataError, match="each_epoch"):
        next(iter(batches))


def test_work_between_epochs_has_a_loop_of_its_own() -> None:
    batches = Batches(Numbers(8), global_batch_size=4, epochs=3)
    batches.load_state_dict({**batches.state_dict(), "epoch": 1, "step": 1})
    assert [(epoch, len(list(stepped(batches)))) for epoch in batches.each_epoch()] == [(1, 1), (2, 2)]


def test_none_goes_on_for_ever() -> None:
    batches = Batches(Numbers(4), global_batch_size=4, epochs=None)
    loop = stepped(batches)
    for _ in range(5):
        next(loop)
    assert (batches.epoch, batches.global_step) == (4, 4)


# Steps


def test_a_batch_that_is_never_committed_is_an_error() -> None:
    batches = Batches(Numbers(8), global_batch_size=4)
    loop = iter(batches)
    next(loop)
    with pytest.raises(DataError, match=r"job.step\(\).*micro_batch_size"):
        next(loop)


def test_a_step_ends_with_its_last_micro_batch() -> None:
    batches = Batches(Numbers(7), global_batch_size=7, micro_batch_size=3, shuffle=False)
    loop = iter(batches)
    with pytest.raises(DataError, match="no batch is out"):
        batches.advance()
    assert next(loop).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="is_last_micro"):
        batches.advance()
    assert [next(loop).tolist(), next(loop).tolist()] == [[3, 4], [5, 6]]
    assert batches.step_ids == list(range(7))
    batches.advance()
    with pytest.raises(DataError, match="no batch is out"):
        batches.advance()


# State


def test_the_state_is_small_json() -> None:
    state = Batches(Numbers(10), global_batch_size=4, seed=3).state_dict()
    assert json.loads(json.dumps(state)) == {
        "v": 1, "epoch": 0, "step": 0, "n": 10, "global_batch_size": 4, "seed": 3, "shuffle": True, "drop_last": False,
    }  # fmt: skip
    assert len(json.dumps(state)) < 128


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("n", 11, "a dataset length of 11, here it is 10"),
        ("global_batch_size", 8, "global_batch_size of 8, here it is 4"),
        ("seed", 1, "seed of 1"),
        ("shuffle", False, "shuffle of False"),
        ("drop_last", True, "drop_last of True"),
        ("step", 3, "the steps 0 to 2"),
        ("epoch", -1, "epoch -1"),
        ("v", 2, "this version can read"),
    ],
)
def test_a_state_of_other_data_is_refused(name: str, value: Any, message: str) -> None:
    batches = Batches(Numbers(10), global_batch_size=4)
    with pytest.raises(DataError, match=message):
        batches.load_state_dict({**batches.state_dict(), name: value})


# What cannot be exact


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


def test_streams_are_sent_to_the_adapters() -> None:
    for dataset in (Endless(), iter([1])):
        with pytest.raises(DataError, match=r"StatefulDataLoader.*job\.stream"):
            Batches(dataset, global_batch_size=1)  # type: ignore[arg-type]


def test_settings_that_make_no_sense_are_refused() -> None:
    for options, message in (
        ({"global_batch_size": 0}, "global_batch_size is 0"),
        ({"global_batch_size": 2, "micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"global_batch_size": 9, "drop_last": True}, "no batch is left"),
        ({"global_batch_size": 2, "rank": 2, "world_size": 2}, "rank 2 does not exist"),
        ({"global_batch_size": 2, "sampler": [1]}, "sampler: exact batches set this"),
        ({"global_batch_size": 2, "in_order": False}, "in_order"),
    ):
        with pytest.raises(DataError, match=message):
            Batches(Numbers(4), **options)
    with pytest.raises(DataError, match="empty"):
        Batches([], global_batch_size=1)


# Loading


def test_the_usual_datasets_and_collate_functions_work() -> None:
    tensors = TensorDataset(torch.arange(6.0), torch.arange(6))
    x, y = next(iter(Batches(tensors, global_batch_size=6, shuffle=False)))
    assert x.tolist() == y.tolist() == list(range(6))
    assert next(iter(Batches(Bulk(4), global_batch_size=4, shuffle=False))).tolist() == [0, -1, -2, -3]
    assert next(iter(Batches(["a", "b"], global_batch_size=2, shuffle=False, collate_fn="".join))) == "ab"


def augmented(**options: Any) -> dict[int, tuple[float, ...]]:
    made: dict[int, tuple[float, ...]] = {}
    batches = Batches(Noisy(12), global_batch_size=4, seed_samples=True, **options)
    for index, *noise in stepped(batches):
        made.update(zip(index.tolist(), zip(*(part.tolist() for part in noise), strict=True), strict=True))
    batches.close()
    return made


def test_seeded_augmentation_depends_on_the_sample_alone() -> None:
    reference = augmented()
    assert len(set(reference.values())) == 12
    assert augmented(num_workers=2, micro_batch_size=3) == reference
    part = augmented(rank=1, world_size=3)
    assert part.items() <= reference.items()


def test_loading_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    augmented()
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected
