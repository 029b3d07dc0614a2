"""Boxes of tensors: which part of a tensor a rank has, and what two of them share. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """From `start` on, `size` along each dimension; () for a scalar."""

    start: tuple[int, ...]
    size: tuple[int, ...]

    @staticmethod
    def whole(shape: Sequence[int]) -> Box:
        return Box((0,) * len(shape), tuple(shape))

    @property
    def numel(self) -> int:
        return math.prod(self.size)

    def meet(self, other: Box) -> Box | None:
        """What both have in common, or None."""
        if len(self.size) != len(other.size):
            return None
        start = tuple(map(max, self.start, other.start))
        ends = (min(a + n, b + m) for a, n, b, m in zip(self.start, self.size, other.start, other.size, strict=True))
        size = tuple(end - begin for begin, end in zip(start, ends, strict=True))
        return Box(start, size) if all(extent > 0 for extent in size) else None

    def within(self, outer: Box) -> tuple[slice, ...]:
        """This box as an index into a tensor that holds `outer`."""
        return tuple(
            slice(begin - base, begin - base + extent)
            for begin, base, extent in zip(self.start, outer.start, self.size, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Move:
    """The box of tensor `name` that `target` needs and finds in the part `part`, which `source` has."""

    source: int
    target: int
    part: int
    name: str
    box: Box


def moves(
    target: int,
    needs: Mapping[str, Box],
    parts: Mapping[int, Mapping[str, Box]],
    holders: Mapping[int, Sequence[int]],
) -> list[Move]:
    """What rank `target` has to get from where.

    `parts` are the boxes that each part of the snapshot holds, `holders` the ranks that have it at hand. What the
    target has itself it takes itself; the others take turns. Where several parts hold the same box, the first one
    counts, and before it one that the target has. Raises KeyError where a need is not covered.
    """
    found: list[Move] = []
    in_order = sorted(parts, key=lambda part: (target not in holders[part], part))
    for name, need in sorted(needs.items()):
        covered = 0
        seen: set[Box] = set()
        for part in in_order:
            held = parts[part].get(name)
            common = held.meet(need) if held is not None else None
            if common is None or common in seen:
                continue
            seen.add(common)
            covered += common.numel
            ranks = holders[part]
            source = target if target in ranks else ranks[(part + target) % len(ranks)]
            found.append(Move(source, target, part, name, common))
        if covered < need.numel:
            raise KeyError(name)
    return found
