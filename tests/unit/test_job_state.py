"""What `job.track` names, as a state and back, in one process."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from spotrun.errors import UsageError
from spotrun.job_state import Tracked
from spotrun.memory import Memory, PrivateShelf, Stamp, join
from spotrun.recall import Recall


def made(layer: torch.nn.Module | None = None) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), layer or torch.nn.Tanh(), torch.nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_state_from_memory_goes_on_as_if_nothing_had_happened() -> None:
    model, optimizer = made()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    tracked = Tracked({"model": model, "optimizer": optimizer, "scheduler": scheduler})
    for _ in range(3):
        step(model, optimizer)
        scheduler.step()
    memory = Memory(PrivateShelf(), 0)
    rest = {"extra": {"step": 3}}
    memory.keep(Stamp(1, 3, 0, 1, 0, 1), tracked.state(), rest)
    assert memory.wait(20)
    step(model, optimizer)
    expected = copy.deepcopy(model.state_dict())

    again, optimizer = made()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    recall = Recall(memory, None, 0)
    rest = recall.rest()
    state = join(rest["state"], "", recall.fetch(None))
    Tracked({"model": again, "optimizer": optimizer, "scheduler": scheduler}).load(state)
    assert rest["extra"] == {"step": 3}
    assert scheduler.last_epoch == 3
    step(again, optimizer)
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


def test_a_snapshot_is_not_touched_by_what_comes_after() -> None:
    model, optimizer = made()
    tracked = Tracked({"model": model, "optimizer": optimizer})
    step(model, optimizer)
    memory = Memory(PrivateShelf(), 0)
    kept = copy.deepcopy(model.state_dict())
    memory.keep(Stamp(1, 1, 0, 1, 0, 1), tracked.state(), {})
    assert memory.wait(20)
    step(model, optimizer)
    recall = Recall(memory, None, 0)
    state = join(recall.rest()["state"], "", recall.fetch(None))
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in kept.items())


def test_asking_a_fresh_optimizer_for_its_state_can_be_undone() -> None:
    (model, optimizer), (other, untouched) = made(), made()
    tracked = Tracked({"model": model, "optimizer": optimizer})
    tracked.state()
    tracked.forget()
    step(model, optimizer)
    step(other, untouched)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_the_live_state_is_a_steps_until_an_optimizer_moves() -> None:
    model, optimizer = made()
    tracked = Tracked({"model": model, "optimizer": optimizer})
    model(torch.ones(2, 3)).sum().backward()
    assert tracked.untouched
    optimizer.step()
    assert not tracked.untouched
    tracked.moved = False
    assert tracked.untouched


def test_with_buffers_a_forward_pass_may_have_changed_the_state() -> None:
    model, optimizer = made(torch.nn.BatchNorm1d(4))
    assert not Tracked({"model": model, "optimizer": optimizer}).untouched


@pytest.mark.parametrize(
    ("objects", "message"),
    [({"optimizer": made()[1]}, "an optimizer but no model"), ({"thing": 3}, "thing=...) was given a int")],
)
def test_what_has_no_state_is_refused(objects: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        Tracked(objects)
