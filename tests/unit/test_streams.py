"""Loaders that resume by themselves keep doing so inside a job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from spotrun.errors import DataError
from spotrun.streams import ResumableLoader, Stream


class Loader:
    """Behaves as torchdata's StatefulDataLoader does, over batches (pass, number).

    A pass goes on where the loaded state stands, which may be its very end; the next pass is a whole one. It runs ahead
    by a prefetched batch, which its state does not count.
    """

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches
        self.passes = self.given = 0
        self.resume = False

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if not self.resume:
            self.passes, self.given = self.passes + 1, 0
        self.resume = False
        prefetched = [(self.passes, number) for number in range(self.given, self.batches)]
        for batch in prefetched:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"pass": self.passes, "given": self.given}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.passes, self.given = state["pass"], state["given"]
        self.resume = self.passes > 0


def train(stream: Stream, steps: int = 100) -> list[tuple[int, int]]:
    done: list[tuple[int, int]] = []
    for _ in range(stream.epoch, 3):
        for batch in stream:
            done.append(batch)
            stream.advance()
            if len(done) == steps:
                return done
    return done


WHOLE = [(epoch, number) for epoch in (1, 2, 3) for number in range(4)]


@pytest.mark.parametrize("steps", range(1, 13))
def test_a_stream_goes_on_after_the_last_committed_batch(steps: int) -> None:
    first = Stream(Loader())
    done = train(first, steps)
    next(iter(first), None)  # handed out, never committed
    second = Stream(Loader())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert done + train(second) == WHOLE
    assert second.steps == 12


@pytest.mark.parametrize("steps", range(4))
def test_a_loop_that_was_left_begins_again_before_the_uncommitted_batch(steps: int) -> None:
    stream = Stream(Loader())
    done = train(stream, steps) if steps else []
    next(iter(stream))
    next(iter(stream))
    assert done + train(stream) == WHOLE


def test_the_first_batch_of_a_pass_that_was_left_comes_again() -> None:
    stream = Stream(Loader())
    done = []
    for batch in stream:
        done.append(batch)
        stream.advance()
    next(iter(stream))
    assert done + train(stream) == WHOLE


def test_another_world_is_refused_unless_the_loader_is_elastic() -> None:
    state = Stream(Loader(), rank=1, world_size=3).state_dict()
    with pytest.raises(DataError, match=r"rank 1 of 3.*rank 0 of 2.*job\.batches"):
        Stream(Loader(), rank=0, world_size=2).load_state_dict(state)
    with pytest.raises(DataError, match="rank 1 of 2"):
        Stream(Loader(), rank=0, world_size=2).set_world(1, 2)
    elastic = Stream(Loader(), rank=0, world_size=2, elastic=True)
    elastic.load_state_dict(state)
    elastic.set_world(1, 2)


def test_what_cannot_resume_is_refused() -> None:
    with pytest.raises(DataError, match="list cannot resume, it has no state_dict"):
        Stream([1, 2])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="this version can read"):
        Stream(Loader()).load_state_dict({"v": 2})


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata calls it
def test_torchdata_where_it_is_installed() -> None:
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> ResumableLoader:
        made: ResumableLoader = torchdata.StatefulDataLoader(list(range(30)), batch_size=4, num_workers=2)
        return made

    whole = [batch.tolist() for batch in train_any(Stream(loader()))]
    first = Stream(loader())
    done = [batch.tolist() for batch in train_any(first, 10)]
    second = Stream(loader())
    second.load_state_dict(first.state_dict())
    assert done + [batch.tolist() for batch in train_any(second)] == whole


def train_any(stream: Stream, steps: int = 100) -> list[Any]:
    return train(stream, steps)
