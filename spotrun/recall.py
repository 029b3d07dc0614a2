"""The newest snapshot that is whole somewhere in the memory of the job, and the way of its parts to who needs them.

Every call is made by all ranks of the round together, on a gloo group. What comes from other nodes is JSON, raw tensor
data, and state that torch.load(weights_only=True) reads; a part whose checksum does not fit is as good as lost.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from spotrun.boxes import Box, Move, moves
from spotrun.errors import BadRecord
from spotrun.memory import Memory, unpack
from spotrun.replicas import pieces_of
from spotrun.segment import Header, Piece, Segment, decode_head

logger = logging.getLogger("spotrun")


@dataclass(frozen=True, slots=True)
class Holding:
    """A whole part in the memory of a node, as its workers tell the others."""

    node: int
    name: str
    round: int
    step: int
    part: int
    parts: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The snapshot to go on from. `holders` are the ranks that have each part at hand."""

    round: int
    step: int
    parts: int
    holders: dict[int, list[int]]


def choose(held: Mapping[int, Iterable[Holding]]) -> Choice | None:
    """Of what each rank holds, the newest (round, step) of which all parts are there; pure."""
    holders: dict[tuple[int, int, int], dict[int, list[int]]] = {}
    for rank in sorted(held):
        for one in held[rank]:
            ranks = holders.setdefault((one.round, one.step, one.parts), {}).setdefault(one.part, [])
            if rank not in ranks:
                ranks.append(rank)
    whole = [key for key, parts in holders.items() if set(parts) == set(range(key[2]))]
    if not whole:
        return None
    newest = max(whole)
    return Choice(*newest, holders[newest])


class Recall:
    """What was found, ready to be fetched."""

    def __init__(self, memory: Memory, group: dist.ProcessGroup | None, node: int) -> None:
        """`node` is equal for the ranks that share an agent. Looks through the memory of all of them."""
        self._group = group
        self._rank, self._size = (0, 1) if group is None else (group.rank(), group.size())
        self.fetched_bytes = 0  # of tensors, from other ranks
        self._segments: dict[str, tuple[Segment, Header]] = {}
        for name, path in memory.shelf.segments().items():
            segment = Segment(path)
            header = segment.header()
            if header is not None:
                self._segments[name] = segment, header
        mine = [
            [node, name, header.round, header.step, header.part, header.parts]
            for name, (_, header) in self._segments.items()
        ]
        told = self._gather(mine)
        held = {rank: [Holding(*row) for row in rows] for rank, rows in enumerate(told)}
        self.choice = choose(held)
        while self.choice is not None:
            unsound = [[node, name] for name in self._unsound(self.choice, memory)]
            bad = {(row[0], row[1]) for rows in self._gather(unsound) for row in rows}
            if not bad:
                break
            logger.warning("%d parts of the snapshot of step %d are damaged: not used", len(bad), self.choice.step)
            held = {rank: [one for one in have if (one.node, one.name) not in bad] for rank, have in held.items()}
            self.choice = choose(held)

    def rest(self) -> dict[str, Any]:
        """The state without its tensors, and what the job kept with it, with this rank's own random state or None."""
        choice = self._chosen()
        source = choice.holders[0][0]
        local = self._local(choice)
        data = b""
        if self._rank == source:
            segment, header = local[0]
            data = segment.rest(header)
        rest: dict[str, Any] = unpack(_broadcast(data, source, self._group))
        return rest

    def own(self, rank: int, world_size: int) -> Any:
        """What that rank of such a world kept for itself, where it was a worker of this node; else None."""
        for segment, header in self._local(self._chosen()).values():
            about = decode_head(segment.head(header))[1]
            if (about.get("rank"), about.get("world_size")) == (rank, world_size):
                return unpack(segment.rest(header)).get("own")
        return None

    def fetch(self, into: Mapping[str, tuple[torch.Tensor, Box]] | None) -> dict[str, torch.Tensor]:
        """Fill each tensor's box, or (None) return all tensors whole. Raises KeyError for one that is not there."""
        choice = self._chosen()
        local = self._local(choice)
        tables = self._tables(choice, local)
        whole: dict[str, torch.Tensor] = {}
        if into is None:
            known = {name: piece for table in tables.values() for name, piece in table.items()}
            needs = {name: Box.whole(piece.shape) for name, piece in known.items()}
        else:
            needs = {name: box for name, (_, box) in into.items()}
        boxes = {part: {name: piece.box for name, piece in table.items()} for part, table in tables.items()}
        plan = moves(self._rank, needs, boxes, choice.holders)

        def place(move: Move, dtype: torch.dtype) -> torch.Tensor:
            """Where that box belongs."""
            if into is not None:
                tensor, box = into[move.name]
                return tensor[move.box.within(box)]
            need = needs[move.name]
            if move.name not in whole:
                whole[move.name] = torch.empty(need.size, dtype=dtype)
            return whole[move.name][move.box.within(need)]

        away = [move for move in plan if move.source != self._rank]
        for move in plan:
            if move.source == self._rank:
                found = self._view(local, tables, move)
                place(move, found.dtype).copy_(found)
        self._exchange(away, local, tables, place)
        return whole

    # -- inside

    def _chosen(self) -> Choice:
        assert self.choice is not None
        return self.choice

    def _local(self, choice: Choice) -> dict[int, tuple[Segment, Header]]:
        """The parts of the choice at hand."""
        return {
            header.part: (segment, header)
            for segment, header in self._segments.values()
            if (header.round, header.step, header.parts) == (choice.round, choice.step, choice.parts)
            and self._rank in choice.holders[header.part]
        }

    def _unsound(self, choice: Choice, memory: Memory) -> list[str]:
        """Which parts of the choice at hand are damaged, but for what this process itself has written."""
        found = []
        for name, (segment, header) in self._segments.items():
            if (header.round, header.step, header.parts) != (choice.round, choice.step, choice.parts):
                continue
            if memory.written.get(segment.path) != header and not segment.is_sound(header):
                found.append(name)
        return found

    def _tables(self, choice: Choice, local: Mapping[int, tuple[Segment, Header]]) -> dict[int, dict[str, Piece]]:
        """What each part holds; of each, the first holder tells."""
        mine = {}
        for part, (segment, header) in local.items():
            if choice.holders[part][0] == self._rank:
                mine[str(part)] = segment.head(header).decode()
        heads = {int(part): head for told in self._gather(mine) for part, head in told.items()}
        return {part: decode_head(heads[part].encode())[0] for part in range(choice.parts)}

    def _view(
        self, local: Mapping[int, tuple[Segment, Header]], tables: Mapping[int, Mapping[str, Piece]], move: Move
    ) -> torch.Tensor:
        segment, header = local[move.part]
        piece = tables[move.part][move.name]
        return segment.view(header, piece)[move.box.within(piece.box)]

    def _exchange(self, away: list[Move], local: Any, tables: Any, place: Any) -> None:
        """Ask the sources for what is not at hand, and answer the others."""
        if self._group is None:
            return
        asked = self._gather([[m.source, m.part, m.name, m.box.start, m.box.size] for m in away])
        work, arriving = [], []
        for target, rows in enumerate(asked):
            wanted = [
                Move(source, target, part, name, Box(tuple(start), tuple(size)))
                for source, part, name, start, size in rows
                if source == self._rank
            ]
            if wanted:
                parts = [self._view(local, tables, move).contiguous().view(-1).view(torch.uint8) for move in wanted]
                for piece in pieces_of(torch.cat(parts)):
                    work.append(dist.isend(piece, group=self._group, group_dst=target))
        for source in sorted({move.source for move in away}):
            mine = [move for move in away if move.source == source]
            kinds = [tables[move.part][move.name].dtype for move in mine]
            size = sum(move.box.numel * kind.itemsize for move, kind in zip(mine, kinds, strict=True))
            self.fetched_bytes += size
            buffer = torch.empty(size, dtype=torch.uint8)
            for piece in pieces_of(buffer):
                work.append(dist.irecv(piece, group=self._group, group_src=source))
            arriving.append((buffer, mine, kinds))
        for one in work:
            assert one is not None
            one.wait()
        for buffer, mine, kinds in arriving:
            at = 0
            for move, kind in zip(mine, kinds, strict=True):
                size = move.box.numel * kind.itemsize
                # A copy: a view of another type must begin at a multiple of its size.
                place(move, kind).copy_(buffer[at : at + size].clone().view(kind).view(move.box.size))
                at += size

    def _gather(self, value: Any) -> list[Any]:
        """`value` of every rank, as JSON."""
        data = json.dumps(value, separators=(",", ":")).encode()
        if self._group is None:
            return [json.loads(data)]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self._size)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
        longest = max(int(size) for size in sizes)
        mine = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
        found = [torch.empty_like(mine) for _ in range(self._size)]
        dist.all_gather(found, mine, group=self._group)
        try:
            return [json.loads(one.numpy().tobytes()) for one in found]
        except ValueError as error:
            raise BadRecord(f"what another rank tells of its memory cannot be read: {error}") from None


def _broadcast(data: bytes, source: int, group: dist.ProcessGroup | None) -> bytes:
    if group is None:
        return data
    size = torch.tensor([len(data)])
    dist.broadcast(size, group=group, group_src=source)
    buffer = torch.frombuffer(bytearray(data or int(size)), dtype=torch.uint8)
    dist.broadcast(buffer, group=group, group_src=source)
    return buffer.numpy().tobytes()
