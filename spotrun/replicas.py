"""Copies of each worker's part of a snapshot on other nodes, so that it outlives its node.

All ranks snapshot the same step and then exchange their parts in the background, over a gloo group that nothing else
uses meanwhile: worker l of node i sends to node i + 1, i + 2, ... and keeps what it is sent in segments of its agent.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence

import torch
import torch.distributed as dist

from spotrun.memory import Memory
from spotrun.segment import Header, Segment

CHUNK_BYTES = 32 << 20  # sent in pieces of this size


def targets(nodes: Sequence[Sequence[int]], rank: int, copies: int, leaving: Collection[int] = ()) -> list[int]:
    """To which ranks `rank` sends its part. `nodes` are the ranks of each node; nodes with ranks in `leaving` get none.

    The next `copies` nodes in the circle that stay; within a node, workers take what comes by their place.
    """
    here = next(index for index, ranks in enumerate(nodes) if rank in ranks)
    place = list(nodes[here]).index(rank)
    circle = [nodes[(here + offset) % len(nodes)] for offset in range(1, len(nodes))]
    staying = [ranks for ranks in circle if not set(ranks) & set(leaving)]
    return [ranks[place % len(ranks)] for ranks in staying[:copies]]


def circle(nodes: Sequence[Sequence[int]], zones: Sequence[int]) -> list[Sequence[int]]:
    """`nodes` so that neighbours are in different zones, as far as these allow.

    `zones` by node. Those of one zone stand in a row first, the largest zone in front; then the two halves of the row
    take turns. With one zone, or none known, the order stays as it is.
    """
    if len(set(zones)) == 1:
        return list(nodes)
    row = sorted(range(len(nodes)), key=lambda index: (-list(zones).count(zones[index]), zones[index], index))
    half = -(-len(row) // 2)
    turns = itertools.chain.from_iterable(itertools.zip_longest(row[:half], row[half:]))
    return [nodes[index] for index in turns if index is not None]


class Replicas:
    """An exchange. `group` is gloo; `nodes` the ranks of each node, in order; see `targets` for the others."""

    def __init__(
        self,
        memory: Memory,
        group: dist.ProcessGroup,
        nodes: Sequence[Sequence[int]],
        copies: int,
        leaving: Collection[int],
    ) -> None:
        self._memory = memory
        self._group = group
        self._nodes = nodes
        self._copies = copies
        self._leaving = leaving

    def exchange(self, segment: Segment, header: Header) -> None:
        """Send this rank's part and take those of others; raises RuntimeError where a peer is gone."""
        rank, size = self._group.rank(), self._group.size()
        to = {one: targets(self._nodes, one, self._copies, self._leaving) for one in range(size)}
        mine = torch.tensor(dataclasses.astuple(header))
        headers = [torch.empty_like(mine) for _ in range(size)]
        dist.all_gather(headers, mine, group=self._group)
        work = [
            dist.isend(piece, group=self._group, group_dst=target)
            for target in to[rank]
            for piece in pieces_of(segment.contents(header))
        ]
        arriving = []
        for index, source in enumerate(one for one in range(size) if rank in to[one]):
            theirs = Header(*headers[source].tolist())
            into = self._memory.older(f"copy{index}", theirs.used_bytes)
            buffer = into.receive(theirs)
            work += [dist.irecv(piece, group=self._group, group_src=source) for piece in pieces_of(buffer)]
            arriving.append((into, theirs))
        for one in work:
            assert one is not None
            one.wait()
        for into, theirs in arriving:
            into.publish(theirs)


def pieces_of(data: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from torch.split(data, CHUNK_BYTES)
