"""What one rank holds while it trains, in closed form, but for activations, which `activations.py` measures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sharding = Literal["ddp", "fsdp"]
OPTIMIZERS = {"sgd": 0, "momentum": 1, "adamw": 2}  # tensors of the size of a parameter


@dataclass(frozen=True, slots=True)
class Model:
    """A model as far as its memory goes."""

    parameters: int
    largest_block: int  # parameters in the largest part that FSDP gathers at once
    bytes_each: int = 4  # of a parameter, its gradient and each state of the optimizer
    optimizer: str = "adamw"
    activation_bytes: int = 0  # after the forward pass, for the batch of one rank


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one rank."""

    parameters: float
    gradients: float
    optimizer: float
    buckets: float  # DDP: copies of gradients to reduce; FSDP: what is gathered
    activations: float

    @property
    def total(self) -> float:
        """At the peak: a layer's activations go as its gradients come, so that the larger of the two counts."""
        return self.parameters + self.optimizer + self.buckets + max(self.gradients, self.activations)


def predict(model: Model, sharding: Sharding, ranks: int) -> Memory:
    """DDP keeps everything on each rank, and its buckets are a second copy of the gradients (torch's default, without
    gradient_as_bucket_view). FSDP2 keeps 1/ranks, and gathers the block that computes, the next one, and a gradient."""
    whole = model.parameters * model.bytes_each
    states = whole * OPTIMIZERS[model.optimizer]
    if sharding == "ddp":
        buckets = whole if ranks > 1 else 0
        return Memory(whole, whole, states, buckets, model.activation_bytes)
    gathered = 3 * model.largest_block * model.bytes_each if ranks > 1 else 0
    return Memory(whole / ranks, whole / ranks, states / ranks, gathered, model.activation_bytes)


def state_bytes(model: Model) -> int:
    """What a checkpoint holds: parameters and the optimizer's state."""
    return model.parameters * model.bytes_each * (1 + OPTIMIZERS[model.optimizer])
