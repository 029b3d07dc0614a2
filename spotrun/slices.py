"""Which positions of an epoch belong to which step, rank and micro batch: pure arithmetic, no torch.

An epoch is the positions 0 .. n-1 of its order. Step s takes the global batch [s*B, min((s+1)*B, n)), whatever the
world; the ranks share it in contiguous slices whose lengths differ by at most 1, and each rank shares its slice among
its micro batches in the same way. So a step's samples are a function of s alone, and only who computes them changes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """The next step to take: `step` counts from 0 in each epoch."""

    epoch: int = 0
    step: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """One micro batch of one rank: the positions [start, stop) of an epoch."""

    at: Position
    start: int
    stop: int
    weight: float  # what the mean loss of this micro batch is multiplied by; 0: a filler
    micro: int  # its number within the step, from 0
    is_last_micro: bool

    @property
    def count(self) -> int:
        """The samples that this micro batch consumes; 0 for a filler, which computes one sample with weight 0."""
        return 0 if self.weight == 0 else self.stop - self.start


def steps_per_epoch(n: int, global_batch_size: int, drop_last: bool) -> int:
    return n // global_batch_size if drop_last else -(-n // global_batch_size)


def share(start: int, stop: int, index: int, parts: int) -> tuple[int, int]:
    """Part `index` of [start, stop) cut into `parts` contiguous parts; the first ones are the longer ones."""
    size, longer = divmod(stop - start, parts)
    first = start + index * size + min(index, longer)
    return first, first + size + (index < longer)


def plan_step(
    at: Position, n: int, global_batch_size: int, rank: int, world_size: int, micro_batch_size: int | None = None
) -> list[Plan]:
    """The micro batches of `rank` at a step: equally many on every rank, so that their collectives match.

    The sum over a rank's micro batches of weight * mean loss, averaged over the ranks as DDP and FSDP do, is the mean
    loss over the global batch. A rank (or micro batch) without a sample of its own gets the first sample of the step
    with weight 0: it takes part in every collective, adds zeros, and consumes nothing.
    """
    low = at.step * global_batch_size
    high = min(low + global_batch_size, n)
    longest = -(-(high - low) // world_size)
    micros = 1 if micro_batch_size is None else -(-longest // micro_batch_size)
    first, last = share(low, high, rank, world_size)
    plans = []
    for micro in range(micros):
        start, stop = share(first, last, micro, micros)
        weight = (stop - start) * world_size / (high - low)
        if start == stop:
            start, stop = low, low + 1
        plans.append(Plan(at, start, stop, weight, micro, micro == micros - 1))
    return plans
