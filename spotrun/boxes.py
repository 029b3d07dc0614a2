"""Boxes of tensors: which part of a tensor a rank has, and what two of them share. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CUT_BYTES = 1 << 20  # slices smaller than this are not worth a copy of their own
EVEN = 16  # rows in each slice at least, so that they differ by a sixteenth at most


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


def spread(tensors: Mapping[str, tuple[Sequence[int], int]], parts: int) -> list[dict[str, Box]]:
    """All of `tensors` (shape and bytes of each) in `parts` of about the same number of bytes.

    Large ones are cut, along the first dimension that is long enough for even slices; the others go whole, the largest
    first, to the lightest part.
    """
    loads, shares = [0] * parts, [dict[str, Box]() for _ in range(parts)]
    for name, (shape, size_bytes) in sorted(tensors.items(), key=lambda item: (-item[1][1], item[0])):
        axis = next((axis for axis, extent in enumerate(shape) if extent >= EVEN * parts), None)
        if size_bytes >= CUT_BYTES * parts and axis is not None:
            cuts = [shape[axis] * part // parts for part in range(parts + 1)]
            for part, (start, end) in enumerate(itertools.pairwise(cuts)):
                box = Box.whole(shape)
                at, size = list(box.start), list(box.size)
                at[axis], size[axis] = start, end - start
                shares[part][name] = Box(tuple(at), tuple(size))
        else:
            lightest = min(range(parts), key=lambda part: (loads[part], part))
            loads[lightest] += size_bytes
            shares[lightest][name] = Box.whole(shape)
    return shares
