"""One round's snapshots, as a Job takes, secures and restores them: what memory, replicas and recall do together."""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
import torch.distributed as dist

from spotrun import events
from spotrun.link import Place
from spotrun.memory import Local, Memory, Stamp, join, split, state_bytes
from spotrun.recall import Recall
from spotrun.replicas import Replicas, circle, targets
from spotrun.segment import RESERVE

if TYPE_CHECKING:
    from spotrun.job_state import Tracked

logger = logging.getLogger("spotrun")

ZONE_ENV = "SPOTRUN_ZONE"  # where this machine is, as the launcher found out
TURNS = 2
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Found:
    recall: Recall
    state: dict[str, Any]  # what of it is no tensor
    extra: dict[str, Any]
    own: Any  # what this rank kept for itself, in a world of the present size; None if it did not, or not on this node
    step: int
    final: bool  # taken when the round was left: there is nothing newer


class Snapshots:
    """`group` is a gloo group that nothing else uses; None for a world of one. `copies` on other nodes, where sharded.

    All calls are made by all ranks together, but for `keep` and `wait`.
    """

    def __init__(
        self, memory: Memory, place: Place, tracked: Tracked, group: dist.ProcessGroup | None, copies: int
    ) -> None:
        self._memory = memory
        self._place = place
        self._tracked = tracked
        self._group = group
        self._nodes = self._layout()
        self._circle = circle(self._nodes, self._zones())
        self._copies = min(copies, len(self._nodes) - 1) if tracked.sharded else 0
        self._leaving: frozenset[int] = frozenset()  # ranks whose nodes are about to go
        self._fits: bool | None = None  # not known before the first snapshot
        self.step = 0  # of the last one
        self._copied_step = 0  # of the last one whose copies are known to be there
        tracked.before_change = memory.settle

    def find(self) -> Found | None:
        """The newest whole snapshot that is anywhere in the memory of the job."""
        recall = Recall(self._memory, self._group, self._place.node)
        if recall.choice is None:
            return None
        rest = recall.rest()
        own = recall.own(self._place.rank, self._place.world_size)
        return Found(recall, rest["state"], rest["extra"], own, recall.choice.step, bool(rest["final"]))

    def load(self, found: Found) -> bool:
        """Load it; whether it fits what is tracked."""
        recall = found.recall
        tensors: dict[str, torch.Tensor] = {}
        try:
            if self._tracked.sharded:
                split(self._tracked.state(), "", tensors)
                local = {name: Local.of(tensor) for name, tensor in tensors.items()}
                recall.fetch({name: (one.tensor, one.box) for name, one in local.items()})
            else:
                tensors = recall.fetch(None)
        except KeyError as error:
            events.emit("snapshot_unfit", f"the snapshot in memory has no {error}", level=logging.WARNING)
            self._tracked.forget()
            return False
        self._tracked.load(join(found.state, "", tensors))
        return True

    @property
    def replica_step(self) -> int:
        """Of the newest snapshot that would outlive this node; 0: there is none."""
        if len(self._nodes) < 2 or (self._tracked.sharded and not self._copies):
            return 0
        return self._copied_step if self._copies and self._memory.busy else self.step

    def wishes(self) -> set[str]:
        """For the consensus: no rank takes another one before all have the copies of the last."""
        return {"hold"} if self._copies and self._memory.busy else set()

    def due(self, step: int, every: int, granted: frozenset[str] | None) -> bool:
        """Whether all ranks take one now. Their word that the last copies are there takes two steps to go around.

        `granted` and `every` as the consensus told them.
        """
        if not every or self._fits is False:
            return False
        waits = self._copies > 0 and (granted is None or "hold" in granted or step - self.step < 2)
        return step - self.step >= every and not waits

    def take(self, step: int, extra: Mapping[str, Any], own: Any) -> None:
        """Copy the state as of `step`; the training goes on while copies are made on other nodes.

        `extra` is equal on all ranks, `own` this rank's: both plain values and tensors.
        """
        began_s = time.monotonic()
        if self._look_whether_it_fits():
            self._copied_step = self.step  # else no rank would take another one
            self._keep(step, extra, own, replicate=True, final=False)
            self.step = step
            self._memory.costs_s.append(time.monotonic() - began_s)

    def secure(self, step: int, extra: Mapping[str, Any], own: Any, *, goes: bool, within_s: float) -> bool:
        """At the end of a round: put the state of `step` where it outlives nodes that go; whether this rank's is.

        Only when no rank has copies under way.
        """
        if not self._look_whether_it_fits():
            return False
        if self._copies:
            self._leaving = frozenset(rank for rank, one in enumerate(self.told(goes)) if one)
        replicate = bool(self._leaving)
        self._keep(step, extra, own, replicate=replicate, final=True)
        safe = self._memory.wait(within_s if replicate else None)  # in this node's own memory it is at once
        if goes and self._tracked.sharded:
            safe = safe and replicate and bool(targets(self._circle, self._place.rank, self._copies, self._leaving))
        if safe:
            self.step = step
        return safe

    def keep(self, step: int, extra: Mapping[str, Any], own: Any) -> None:
        """A round broke off, and the live state of this rank is that of `step`, whole: other ranks may have died."""
        stamp = Stamp(self._place.round, step, self._place.rank, self._place.world_size, 0, 1)
        self._memory.keep(stamp, self._tracked.state(), {"extra": dict(extra), "own": own, "final": False})
        self._memory.wait()

    def of_this_node(self) -> dict[str, Any] | None:
        """The newest whole snapshot that this node has alone: its state, "extra" and "own". Not sharded ones."""
        recall = Recall(self._memory, None, self._place.node)
        if recall.choice is None:
            return None
        rest = recall.rest()
        return {**rest, "state": join(rest["state"], "", recall.fetch(None))}

    def idle(self, within_s: float) -> bool:
        """Wait for the copies under way; whether there are none any more."""
        self._memory.wait(within_s if self._copies else None)
        return not self._memory.busy

    # -- inside

    def _keep(self, step: int, extra: Mapping[str, Any], own: Any, *, replicate: bool, final: bool) -> None:
        place = self._place
        part, parts = (place.rank, place.world_size) if self._tracked.sharded else self._share()
        stamp = Stamp(place.round, step, place.rank, place.world_size, part, parts)
        then = None
        if replicate and self._copies and self._group is not None:
            then = Replicas(self._memory, self._group, self._circle, self._copies, self._leaving).exchange
        rest = {"extra": dict(extra), "own": own, "final": final}
        self._memory.keep(stamp, self._tracked.state(), rest, then)
        if self._tracked.has_buffers:
            self._memory.settle()  # a forward pass changes them, long before an optimizer moves

    def _share(self) -> tuple[int, int]:
        """Of the replicated state: the workers of a node keep one copy of it together."""
        ranks = next(ranks for ranks in self._nodes if self._place.rank in ranks)
        return ranks.index(self._place.rank), len(ranks)

    def _look_whether_it_fits(self) -> bool:
        """Before the first one: whether all nodes have the memory; else copies or all snapshots are left out."""
        if self._fits is None:
            tensors: dict[str, torch.Tensor] = {}
            split(self._tracked.state(), "", tensors)
            parts = 1 if self._tracked.sharded else self._share()[1]
            own = TURNS * state_bytes(tensors) // parts
            there = self._memory.held_bytes()
            needs = self.told(max(0, own - there)), self.told(max(0, own * (1 + self._copies) - there))
            free = self.told(int(free_bytes() * (1 - RESERVE)))
            for needed, what in zip(reversed(needs), ("copies", "snapshots"), strict=True):
                short = [
                    (sum(needed[rank] for rank in ranks), min(free[rank] for rank in ranks), index)
                    for index, ranks in enumerate(self._nodes)
                    if sum(needed[rank] for rank in ranks) > min(free[rank] for rank in ranks)
                ]
                if not short:
                    break
                if what == "copies" and not self._copies:
                    continue
                self._say_short(what, *short[0])
                self._copies = 0
            else:
                self._fits = False
                return False
            self._fits = True
        return self._fits

    def _say_short(self, what: str, needed: int, free: int, node: int) -> None:
        if self._place.rank == 0:
            kind = "copies of snapshots on other nodes are" if what == "copies" else "snapshots in memory are"
            events.emit(
                "memory_short",
                f"{kind} off: node {node} would need {needed / 1e9:.2f} GB more for them and has "
                f"{free / 1e9:.2f} GB to spare; more memory, or fewer --replicas, turns them on",
                level=logging.WARNING,
                needed_bytes=needed,
                free_bytes=free,
            )

    def _layout(self) -> list[list[int]]:
        """The ranks of each node, in rank order."""
        nodes: dict[int, list[int]] = {}
        for rank, node in enumerate(self.told(self._place.node)):
            nodes.setdefault(node, []).append(rank)
        return [nodes[node] for node in sorted(nodes)]

    def _zones(self) -> list[int]:
        """Of each node."""
        zones = self.told(zlib.crc32(os.environ.get(ZONE_ENV, "").encode()))
        return [zones[ranks[0]] for ranks in self._nodes]

    def told(self, value: int) -> list[int]:
        """`value` of every rank."""
        if self._group is None:
            return [value]
        mine = torch.tensor([value])
        found = [torch.empty_like(mine) for _ in range(self._group.size())]
        dist.all_gather(found, mine, group=self._group)
        return [int(one) for one in found]


def free_bytes(cgroup: Path = CGROUP) -> int:
    """Memory that can be had on this machine, or in this container if that is less."""
    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((cgroup / name).read_text() for name in ("memory.max", "memory.current"))
        rows = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        files = next(int(size) for name, size in rows if name == "inactive_file")  # the kernel drops them for others
        free = min(free, int(limit) - int(used) + files)
    except (OSError, ValueError):
        pass  # no cgroup of version 2, or "max"
    return max(0, free)
