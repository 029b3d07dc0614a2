"""A run that is resumed has the random numbers of the run that was not interrupted."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spotrun.errors import CheckpointError
from spotrun.randomness import capture, restore, seed_all, seed_of, seeded


@pytest.fixture(autouse=True)
def generators_as_before() -> Iterator[None]:
    state = capture()
    yield
    restore(state)


def draw() -> tuple[float, ...]:
    normal = float(np.random.randn())  # leaves a second normal number in numpy's state, gauss one in python's
    return random.random(), random.gauss(0, 1), normal, float(np.random.rand()), *torch.randn(3).tolist()


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(state)
    assert len(text) < 14_000
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def test_every_generator_goes_on_where_it_was() -> None:
    draw()
    state = through_json(capture())
    expected = [draw() for _ in range(5)]
    seed_all(99)
    restore(state)
    assert [draw() for _ in range(5)] == expected


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(8, 16)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(16, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 4), nn.Dropout(0.1))
    return model, torch.optim.AdamW(model.parameters())


def test_a_resumed_run_with_dropout_is_bit_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # torch's optimizers make that directory
    seed_all(1)
    model, optimizer = build()
    run(model, optimizer, 5)
    saved = through_json(capture()), copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    expected = run(model, optimizer, 5)
    seed_all(2)
    again, again_optimizer = build()  # draws its own initial weights
    again.load_state_dict(saved[1])
    again_optimizer.load_state_dict(saved[2])
    restore(saved[0])
    assert run(again, again_optimizer, 5) == expected
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    good = through_json(capture())
    numpy_bad = {**good, "numpy": {**good["numpy"], "keys": good["numpy"]["keys"][:40]}}
    python_bad = {**good, "python": {**good["python"], "words": good["python"]["words"][:40]}}
    for bad in ({}, {**good, "v": 2}, {**good, "torch": "AAAA"}, numpy_bad, python_bad, {**good, "cuda": "!"}):
        with pytest.raises(CheckpointError, match="random generators"):
            restore(bad)
    assert capture() == good


def test_a_state_from_a_cuda_process_loads_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is here")
    restore({**capture(), "cuda": "A" * 16})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_goes_on_where_it_was() -> None:
    torch.rand(1, device="cuda")
    state = through_json(capture())
    expected = torch.rand(4, device="cuda")
    restore(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)


def test_ranks_and_steps_have_streams_of_their_own() -> None:
    drawn = []
    for key in [(0, 5, 0), (0, 5, 1), (0, 6, 0), (1, 5, 0), (0, 5, 0)]:
        seed_all(*key)
        drawn.append(draw())
    assert drawn[0] == drawn[4]
    assert len({value for numbers in drawn[:4] for value in numbers}) == 4 * len(drawn[0])
    assert seed_of(1, 2) != seed_of(12) != seed_of(2, 1)


def test_a_seeded_part_leaves_no_trace_even_when_it_fails() -> None:
    state = capture()
    with pytest.raises(ZeroDivisionError), seeded(1, 2):
        draw()
        raise ZeroDivisionError
    assert capture() == state
    with seeded(1, 2):
        first = draw()
    draw()
    with seeded(1, 2):
        assert draw() == first
