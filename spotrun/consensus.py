"""The agreed step: all ranks learn after the same step that something is wanted, without waiting for each other.

During step s each rank adds its wishes to an asynchronous MAX-reduction; its result is read at the end of step s + 1.
By then every rank has ended step s, or the training collectives of step s + 1 could not have finished, so reading it
does not block. The reduction runs on a gloo group of its own: sharing the default group with the training collectives
hangs. Nothing here touches a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch.distributed as dist

WISHES = ("leave", "save", "durable", "hold")


class Consensus:
    """`group` is a gloo group of all ranks that nothing else uses; None for a world of one."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self._work: Any = None
        self._flags: Any = None

    def exchange(self, wishes: set[str], every: int = 1) -> tuple[frozenset[str], int]:
        """Called by every rank at the end of every step.

        Returns what any rank had wished for by the end of the step before, and the largest `every` of all ranks then
        (0 at the first call): equal on all ranks. What is granted now is not wished for again by this call.
        """
        if self._group is None:
            return frozenset(wishes), every
        import torch
        import torch.distributed as dist

        granted: frozenset[str] = frozenset()
        agreed = 0
        if self._work is not None:
            self._work.wait()
            *flags, agreed = self._flags.tolist()
            granted = frozenset(wish for wish, flag in zip(WISHES, flags, strict=True) if flag)
            self._work = None
        if "leave" not in granted:  # else no rank starts another
            self._flags = torch.tensor([*(int(wish in wishes - granted) for wish in WISHES), every])
            self._work = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return granted, agreed

    def worst(self, *values: float) -> list[float]:
        """The largest of each over all ranks; waits for them. Only after "leave" was granted: no rank steps again."""
        if self._group is None:
            return list(values)
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self._group)
        return [float(value) for value in found]
