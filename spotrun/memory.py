"""The training state in host memory: kept from one round to the next, and handed to newcomers.

A snapshot is a copy of all tensors in buffers that are allocated once, two of them so that one is always whole, and
the rest of the state as bytes that torch.load(weights_only=True) reads. It serves replicated state (DDP, or one rank):
any rank's copy is the whole of it. Sharded state (DTensor) is not kept here: see `spotrun.job_state`.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

CHUNK_BYTES = 32 << 20  # tensors are broadcast in pieces of this size


@dataclass(slots=True)
class Snapshot:
    step: int
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # on the CPU
    rest: bytes = b""  # everything else of the state, and what the job adds


class Memory:
    """The last whole snapshot of this process, or none."""

    def __init__(self) -> None:
        self.last: Snapshot | None = None
        self.own: dict[str, Any] | None = None  # what is this rank's alone, as of `last`: random state, streams
        self.costs_s: deque[float] = deque(maxlen=5)  # of the last snapshots
        self._spare: Snapshot | None = None

    def keep(self, step: int, state: Mapping[str, Any], extra: Mapping[str, Any]) -> Snapshot:
        """Copy `state` (nested dicts and lists of tensors and plain values) as of `step`."""
        tensors: dict[str, torch.Tensor] = {}
        rest = _split(state, "", tensors)
        into = self._spare or Snapshot(step)
        self._spare = None
        into.step = step
        into.rest = _pack({"state": rest, "extra": dict(extra)})
        kept = into.tensors
        into.tensors = {}
        for name, tensor in tensors.items():
            buffer = kept.get(name)
            if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
            buffer.copy_(tensor.detach())
            into.tensors[name] = buffer
        self._spare, self.last = self.last, into
        return into

    def share(self, group: dist.ProcessGroup | None) -> bool:
        """Give every rank of `group` (gloo) the newest snapshot that any of them has; whether there is one."""
        if group is None:
            return self.last is not None
        rank, size = group.rank(), group.size()
        mine = torch.tensor([self.last.step if self.last is not None else -1])
        steps = [torch.empty_like(mine) for _ in range(size)]
        dist.all_gather(steps, mine, group=group)
        newest = max(int(step) for step in steps)
        if newest < 0:
            return False
        if all(int(step) == newest for step in steps):
            return True
        source = next(index for index, step in enumerate(steps) if int(step) == newest)
        has = rank == source
        snapshot = self.last if has and self.last is not None else Snapshot(newest)
        header = _broadcast_bytes(_pack(_shapes(snapshot.tensors)) if has else b"", source, group)
        snapshot.rest = _broadcast_bytes(snapshot.rest, source, group)
        if not has:
            snapshot.tensors = _empty(_unpack(header))
        for piece in _pieces(snapshot.tensors):
            dist.broadcast(piece, group=group, group_src=source)
        self.last = snapshot
        return True

    def contents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The state of the last snapshot, in the form it was given in, and what was kept with it."""
        assert self.last is not None
        packed = _unpack(self.last.rest)
        return _join(packed["state"], "", self.last.tensors), packed["extra"]


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` with each tensor taken out into `tensors` under its path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return None
    if isinstance(value, Mapping):
        return {key: _split(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_split(item, f"{path}/{index}", tensors) for index, item in enumerate(value))
    return value


def _join(value: Any, path: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    if value is None and path in tensors:
        return tensors[path]
    if isinstance(value, dict):
        return {key: _join(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_join(item, f"{path}/{index}", tensors) for index, item in enumerate(value))
    return value


def _pack(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpack(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (list(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _empty(shapes: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def _pieces(tensors: Mapping[str, torch.Tensor]) -> Iterator[torch.Tensor]:
    """Views of all tensors as bytes, in an order that all ranks share, none larger than CHUNK_BYTES."""
    for _, tensor in sorted(tensors.items()):
        if tensor.numel():
            yield from torch.split(tensor.view(-1).view(torch.uint8), CHUNK_BYTES)


def _broadcast_bytes(data: bytes, source: int, group: dist.ProcessGroup) -> bytes:
    size = torch.tensor([len(data)])
    dist.broadcast(size, group=group, group_src=source)
    buffer = torch.frombuffer(bytearray(data or int(size)), dtype=torch.uint8)
    dist.broadcast(buffer, group=group, group_src=source)
    return buffer.numpy().tobytes()
