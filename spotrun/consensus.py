"""The agreed step: all ranks learn after the same step that something is wanted, without waiting for each other.

During step s each rank adds its wishes to an asynchronous MAX-reduction; its result is read at the end of step s + 1.
By then every rank has ended step s, or the training collectives of step s + 1 could not have finished, so reading it
does not block. The reduction runs on a gloo group of its own: sharing the default group with the training collectives
hangs. Nothing here touches a GPU.

A reduction costs some 0.6 ms where no core is free for it, so where steps are short not each of them begins one: how
long the slowest rank's take is reduced too, and with it all ranks know when the next begins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist

WISHES = ("leave", "save", "durable", "hold")
APART_S = 0.1  # between two reductions, where steps are shorter: what a notice may wait for the next
APART_STEPS = 10  # and never more: steps may become longer at any time


def steps_apart(step_s: float) -> int:
    """Of two reductions, for steps of `step_s` seconds."""
    return max(1, min(APART_STEPS, int(APART_S / max(step_s, 1e-9))))


class Consensus:
    """`group` is a gloo group of all ranks that nothing else uses; None for a world of one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._work: Any = None
        self._flags: Any = None
        self._every = 0
        self._wait = 0  # calls until the next reduction begins

    def exchange(self, wishes: set[str], every: int, step_s: float) -> tuple[frozenset[str] | None, int]:
        """Called by every rank at the end of every step; `step_s` is how long this rank's steps take (seconds).

        Returns what any rank had wished for by the end of the step before, None where no reduction had begun then, and
        the largest `every` of all ranks at the newest reduction (0 at the first call): equal on all ranks. What is
        granted now is not wished for again by this call; all else has to be until it is granted.
        """
        if self._group is None:
            return frozenset(wishes), every
        import torch
        import torch.distributed as dist

        granted: frozenset[str] | None = None
        self._wait -= 1
        if self._work is not None:
            self._work.wait()
            *flags, self._every, slowest_us = self._flags.tolist()
            granted = frozenset(wish for wish, flag in zip(WISHES, flags, strict=True) if flag)
            self._work = None
            self._wait = steps_apart(slowest_us / 1e6) - 1
        done = granted or frozenset()
        if self._wait <= 0 and "leave" not in done:  # else no rank starts another
            flags = [int(wish in wishes - done) for wish in WISHES]
            self._flags = torch.tensor([*flags, every, int(step_s * 1e6)])
            self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return granted, self._every

    def worst(self, *values: float) -> list[float]:
        """The largest of each over all ranks; waits for them. Only after "leave" was granted: no rank steps again."""
        if self._group is None:
            return list(values)
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return [float(value) for value in found]
