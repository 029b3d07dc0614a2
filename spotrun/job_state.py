"""What `job.track` names, as one nested state and back: torch's own functions for models and optimizers.

Names are those of the parameters, without the prefixes of DDP, FSDP and torch.compile, so that a state saved under one
of them loads under another (torch.distributed.checkpoint.state_dict).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from spotrun.errors import UsageError


class Tracked:
    """Modules, optimizers and anything else with `state_dict` and `load_state_dict`, by the names they were given."""

    def __init__(self, objects: Mapping[str, Any]) -> None:
        self._models = {name: one for name, one in objects.items() if isinstance(one, torch.nn.Module)}
        self._optimizers = {name: one for name, one in objects.items() if isinstance(one, torch.optim.Optimizer)}
        self._others = {
            name: one for name, one in objects.items() if name not in self._models and name not in self._optimizers
        }
        for name, one in self._others.items():
            if not (hasattr(one, "state_dict") and hasattr(one, "load_state_dict")):
                raise UsageError(
                    f"job.track({name}=...) was given a {type(one).__name__}: it needs state_dict() and "
                    "load_state_dict()."
                )
        if self._optimizers and not self._models:
            raise UsageError("job.track has an optimizer but no model: track the model that it trains too.")
        self.before_change: Callable[[], None] | None = None  # called before an optimizer changes the state
        self.moved = False  # an optimizer has begun a step since this was last set to False
        for optimizer in self._optimizers.values():
            optimizer.register_step_pre_hook(self._move)
        # An optimizer may hold the parameters of several models, and torch names them from one root.
        self._root = (
            torch.nn.ModuleDict(self._models) if len(self._models) > 1 else next(iter(self._models.values()), None)
        )

    @property
    def sharded(self) -> bool:
        """Whether each rank has only its part of the parameters."""
        tensors = [p for model in self._models.values() for p in model.parameters()]
        return any(isinstance(tensor, DTensor) for tensor in tensors)

    @property
    def models(self) -> list[torch.nn.Module]:
        return list(self._models.values())

    def _move(self, *_: Any) -> None:
        if self.before_change is not None:
            self.before_change()
        self.moved = True

    @property
    def untouched(self) -> bool:
        """Whether the state is as it was when `moved` was last set to False: a forward pass changes only buffers."""
        return not self.moved and not self.has_buffers

    @property
    def has_buffers(self) -> bool:
        return any(True for model in self._models.values() for _ in model.buffers())

    def forget(self) -> None:
        """Undo what `state` does to an optimizer that has never stepped: torch takes a step of length 0 with it."""
        for optimizer in self._optimizers.values():
            optimizer.state.clear()
            optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """The state now. Its tensors are the live ones where torch allows: copy what is to be kept."""
        state: dict[str, Any] = {}
        if self._root is not None:
            state["model"] = get_model_state_dict(self._root)
            for name, optimizer in self._optimizers.items():
                state[name] = get_optimizer_state_dict(self._root, optimizer)
        for name, one in self._others.items():
            state[name] = one.state_dict()
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned, at any world size."""
        if self._root is not None:
            set_model_state_dict(self._root, dict(state["model"]))
            for name, optimizer in self._optimizers.items():
                set_optimizer_state_dict(self._root, optimizer, dict(state[name]))
        for name, one in self._others.items():
            one.load_state_dict(state[name])
