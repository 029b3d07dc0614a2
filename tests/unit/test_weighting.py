"""The weights make the average of ranks' gradients the gradient of the global mean, without any process group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from spotrun.data import Batches
from spotrun.weighting import gradient_sync

X = torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = X.square().sum(dim=1, keepdim=True)
PAIRS = list(zip(X, Y, strict=True))


def model() -> nn.Module:
    linear = nn.Linear(5, 1, dtype=torch.float64)
    nn.init.constant_(linear.weight, 0.3)
    nn.init.constant_(linear.bias, 0.1)
    return linear


def gradient(world_size: int, batch: int, step: int, micro: int | None) -> torch.Tensor:
    """The gradients of all ranks, averaged as DDP does it."""
    total = torch.zeros(6, dtype=torch.float64)
    for rank in range(world_size):
        here = model()
        batches = Batches(PAIRS, global_batch_size=batch, rank=rank, world_size=world_size, micro_batch_size=micro)
        batches.load_state_dict({**batches.state_dict(), "step": step})
        for x, y in batches:
            batches.scale(nn.functional.mse_loss(here(x), y)).backward()  # type: ignore[no-untyped-call]
            if batches.is_last_micro:
                break
        total += torch.cat([parameter.grad.flatten() for parameter in here.parameters() if parameter.grad is not None])
    return total / world_size


@given(st.integers(1, 16), st.integers(1, 13), st.one_of(st.none(), st.integers(1, 4)), st.data())
def test_the_gradient_is_that_of_the_global_mean(
    world_size: int, batch: int, micro: int | None, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, -(-13 // batch) - 1))
    alone = gradient(1, batch, step, None)
    assert torch.allclose(gradient(world_size, batch, step, micro), alone, rtol=1e-12, atol=1e-12)


class Replicated(nn.Linear):
    """The face of DDP: gradients are exchanged unless under no_sync."""

    quiet = False

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        self.quiet = True
        yield
        self.quiet = False


class Sharded(nn.Linear):
    """The face of FSDP2."""

    sync = True

    def set_requires_gradient_sync(self, requires_gradient_sync: bool) -> None:
        self.sync = requires_gradient_sync


def test_gradients_are_exchanged_with_the_last_micro_batch_only() -> None:
    replicated, sharded, plain = Replicated(1, 1), Sharded(1, 1), nn.Linear(1, 1)
    states = []
    for last in (False, True):
        with gradient_sync(replicated, sharded, plain, last=last):
            states.append((replicated.quiet, sharded.sync))
        assert replicated.quiet is False
    assert states == [(True, False), (False, True)]


def test_an_error_inside_is_passed_on() -> None:
    with pytest.raises(ZeroDivisionError), gradient_sync(nn.Linear(1, 1), last=False):
        raise ZeroDivisionError
