"""The copy into host memory: the only part of a save that training waits for.

One flat buffer a rank, allocated and touched once and used again by each save (fresh pages cost 20 times a copy into
used ones), pinned where tensors come from an accelerator. Each tensor gets a slice that is a storage of its own,
because torch.save writes whole storages.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItemType

from spotrun.checkpoint.plan import Piece, item_bytes
from spotrun.errors import CheckpointError

ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Staged:
    """What to write for a piece: a tensor in the buffer, or bytes that torch.save has already made."""

    piece: Piece
    data: torch.Tensor | bytes


class HostBuffer:
    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None
        self._used = 0

    def reserve(self, size_bytes: int, *, pinned: bool) -> None:
        """Make room for a save; what was staged before is then gone."""
        self._used = 0
        if self._memory is None or self._memory.numel() < size_bytes or (pinned and not self._memory.is_pinned()):
            self._memory = None  # let the old one go before the new one comes
            self._memory = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
            self._memory.zero_()

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """An empty place in the buffer for a tensor of this shape, as a storage of its own."""
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        assert self._memory is not None
        start = self._used
        self._used = _aligned(start + size)
        place = torch.frombuffer(self._memory.numpy(), dtype=torch.uint8, count=size, offset=start)
        return place.view(tensor.dtype).view(tensor.shape)


def _aligned(size: int) -> int:
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def room_for(pieces: Sequence[Piece]) -> int:
    return sum(_aligned(item_bytes(piece.item)) for piece in pieces)


def source_tensor(planner: DefaultSavePlanner, piece: Piece) -> torch.Tensor:
    """The part of the rank's own state that the piece names; a view, never a copy of plain tensors."""
    found: torch.Tensor = planner.lookup_object(piece.source)
    if hasattr(found, "to_local"):
        found = found.to_local()
    found = found.detach()
    assert piece.item.tensor_data is not None
    if piece.start is not None:
        found = found.narrow(0, piece.start, piece.item.tensor_data.chunk.sizes[0])
    return found


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and not tensor.is_quantized
    )


def stage(
    planner: DefaultSavePlanner, pieces: Sequence[Piece], buffer: HostBuffer, packed: PackedValues
) -> list[Staged]:
    """Copy this rank's pieces; when it returns, training may change the state again."""
    sources = [None if piece.item.type == WriteItemType.BYTE_IO else source_tensor(planner, piece) for piece in pieces]
    devices = {tensor.device for tensor in sources if tensor is not None and tensor.device.type != "cpu"}
    buffer.reserve(room_for(pieces), pinned=any(device.type == "cuda" for device in devices))
    staged = []
    for piece, source in zip(pieces, sources, strict=True):
        if source is None:
            key = piece.source.fqn
            staged.append(Staged(piece, packed.pack(key, planner.lookup_object(piece.source))))
        elif _is_plain(source):
            place = buffer.place(source)
            place.copy_(source, non_blocking=True)
            staged.append(Staged(piece, place))
        else:  # sparse, quantised, a subclass: as torch.save knows it
            packed_tensor = io.BytesIO()
            torch.save(source.cpu(), packed_tensor)
            staged.append(Staged(piece, packed_tensor.getvalue()))
    for device in devices:
        torch.accelerator.synchronize(device)
    return staged


class PackedValues:
    """torch.save of values that are no tensors; thousands of equal numbers, as in a flattened optimizer, cost one."""

    def __init__(self) -> None:
        self._made: dict[Any, bytes] = {}

    def pack(self, key: str, value: Any) -> bytes:
        """Raises CheckpointError for a value that could not be restored without running code from the checkpoint."""
        same = _identity(value)
        if same is not None and same in self._made:
            return self._made[same]
        packed = io.BytesIO()
        torch.save(value, packed)
        data = packed.getvalue()
        if same is not None:
            if len(self._made) > 10_000:  # numbers that differ in each save, such as a step count
                self._made.clear()
            self._made[same] = data
            return data
        try:
            torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises anything
            raise CheckpointError(
                f"the state at {key!r} is a {type(value).__module__}.{type(value).__qualname__}, which "
                "torch.load(weights_only=True) does not restore; save its state_dict(), or plain numbers, strings, "
                "lists, dicts and tensors, or register its class with torch.serialization.add_safe_globals"
            ) from error
        return data


def _identity(value: Any) -> Any:
    """A key that is equal only for values with equal bytes; None for what is not a plain immutable value."""
    if value is None or type(value) in (bool, int, str):
        return (type(value), value)
    if type(value) is float:
        return (float, math.copysign(1.0, value), value) if not math.isnan(value) else (float, "nan")
    if type(value) is tuple:
        parts = [_identity(part) for part in value]
        return None if None in parts else (tuple, *parts)
    return None
