"""Loaders that resume by themselves go on with the job's checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks import Run, ranks


@pytest.fixture(scope="module", autouse=True)
def run() -> Iterator[Run]:
    with ranks() as run:
        yield run


def test_torchdata_goes_on_in_a_world_of_the_same_size_and_is_refused_in_another(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("torchdata")
    first = run(2, "streaming.train", tmp_path, {"kind": "torchdata", "steps": 2})
    refused = run(3, "streaming.train", tmp_path, {"kind": "torchdata", "steps": 2})
    assert all("belongs to rank 0 of 2 and cannot go on as rank" in said for said in refused.values()), refused
    second = run(2, "streaming.train", tmp_path, {"kind": "torchdata", "steps": 100})
    for rank in (0, 1):
        samples = [sample for batch in first[rank] + second[rank] for sample in batch]
        assert samples == list(range(rank, 48, 2))


def test_a_stream_with_one_position_for_all_ranks_goes_on_in_another_world(run: Run, tmp_path: Path) -> None:
    first = run(2, "streaming.train", tmp_path, {"kind": "one-position", "steps": 1})
    second = run(3, "streaming.train", tmp_path, {"kind": "one-position", "steps": 100})
    samples = [sample for seen in (*first.values(), *second.values()) for batch in seen for sample in batch]
    assert sorted(samples) == list(range(48))
