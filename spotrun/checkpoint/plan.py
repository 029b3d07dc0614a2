"""Which rank writes what: DCP's plan, with replicated tensors spread evenly over the ranks that hold them.

DCP gives each replicated tensor whole to one rank, so one large tensor makes one rank slow, and its staging comes
before its planning, so every rank copies everything. Here planning comes first and is kept for as long as the shape of
the state stays the same; large replicated tensors are cut along their first dimension; each rank then stages only its
share. Replicas are taken to be equal, as DCP does.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

SMALLEST_CUT_BYTES = 1 << 20  # below this, cutting costs more in items than it gains in balance
CUTS_PER_RANK = 8  # pieces of a rank's share are at most an eighth of it, so shares differ by at most that


@dataclass(frozen=True, slots=True)
class Piece:
    """One thing a rank writes: `item` as the metadata names it, taken from `source` in the rank's state."""

    item: WriteItem
    source: MetadataIndex
    start: int | None = None  # first row within the source's local tensor, if the piece is a cut of it


@dataclass(frozen=True, slots=True)
class Plan:
    pieces: tuple[tuple[Piece, ...], ...]  # by rank
    metadata: Metadata  # without storage_data


def local_plan(state_dict: Mapping[str, Any]) -> tuple[DefaultSavePlanner, SavePlan]:
    planner = DefaultSavePlanner()
    planner.set_up_planner(dict(state_dict), None, True)
    return planner, planner.create_local_plan()


def fingerprint(planner: DefaultSavePlanner) -> tuple[Any, ...]:
    """Equal for two states that the same plan fits: keys, shapes, types and layout, not values."""
    return tuple((key, _shape_of(value)) for key, value in planner.state_dict.items())


def _shape_of(value: Any) -> Any:
    if isinstance(value, DTensor):
        return (value.shape, value.dtype, value.placements, id(value.device_mesh))
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype, type(value))
    return type(value).__name__ if hasattr(value, "__get_tensor_shard__") or hasattr(value, "local_shards") else None


def item_bytes(item: WriteItem) -> int:
    if item.tensor_data is None:
        return 0
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


def divide(local_plans: Sequence[SavePlan]) -> Plan:
    """The plan of all ranks from what each holds; every item is written once. Pure."""
    owners: dict[tuple[Any, ...], list[int]] = {}
    items: dict[tuple[Any, ...], WriteItem] = {}
    for rank, plan in enumerate(local_plans):
        for item in plan.items:
            chunk = item.tensor_data.chunk if item.tensor_data is not None else None
            key = (item.index.fqn, tuple(chunk.offsets) if chunk else None, tuple(chunk.sizes) if chunk else None)
            owners.setdefault(key, []).append(rank)
            items.setdefault(key, item)
    total = sum(item_bytes(item) for item in items.values())
    cut_bytes = max(SMALLEST_CUT_BYTES, total // (CUTS_PER_RANK * len(local_plans)))
    loads = [0] * len(local_plans)
    pieces: list[list[Piece]] = [[] for _ in local_plans]
    shared: list[tuple[Piece, list[int]]] = []
    for key, item in items.items():
        if len(owners[key]) == 1:
            rank = owners[key][0]
            loads[rank] += item_bytes(item)
            pieces[rank].append(Piece(item, item.index))
        else:
            shared.extend((piece, owners[key]) for piece in _cut(item, cut_bytes))
    # The longest first, each to the least loaded: at most 4/3 of the best possible (Graham 1969).
    for piece, holders in sorted(shared, key=lambda entry: -item_bytes(entry[0].item)):
        rank = min(holders, key=loads.__getitem__)
        loads[rank] += item_bytes(piece.item)
        pieces[rank].append(piece)
    return _with_metadata(local_plans, pieces)


def _cut(item: WriteItem, cut_bytes: int) -> list[Piece]:
    size = item_bytes(item)
    if item.tensor_data is None or size <= cut_bytes or not item.tensor_data.chunk.sizes:
        return [Piece(item, item.index)]
    chunk, data = item.tensor_data.chunk, item.tensor_data
    rows = chunk.sizes[0]
    count = min(rows, math.ceil(size / cut_bytes))
    if count < 2:
        return [Piece(item, item.index)]
    bounds = [rows * n // count for n in range(count + 1)]
    cuts = []
    for start, end in itertools.pairwise(bounds):
        offsets = torch.Size((chunk.offsets[0] + start, *chunk.offsets[1:]))
        sizes = torch.Size((end - start, *chunk.sizes[1:]))
        part = WriteItem(
            index=MetadataIndex(item.index.fqn, offsets),
            type=WriteItemType.SHARD,
            tensor_data=dataclasses.replace(data, chunk=ChunkStorageMetadata(offsets, sizes)),
        )
        cuts.append(Piece(part, item.index, start))
    return cuts


def _with_metadata(local_plans: Sequence[SavePlan], pieces: list[list[Piece]]) -> Plan:
    plans = [SavePlan([piece.item for piece in mine]) for mine in pieces]
    indexed, metadata = create_default_global_save_plan(plans)
    flattened = dict(ChainMap(*(plan.planner_data for plan in local_plans)))
    placed = tuple(
        tuple(dataclasses.replace(piece, item=item) for piece, item in zip(mine, plan.items, strict=True))
        for mine, plan in zip(pieces, indexed, strict=True)
    )
    return Plan(placed, dataclasses.replace(metadata, planner_data=flattened))
