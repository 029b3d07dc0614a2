"""Snapshots of the training state in host memory: kept at a step, whole in two copies by turns, found again by all.

Where the state is replicated (DDP), the workers of each node keep one copy of it together, each its part; where it is
sharded (FSDP), each keeps its own shard, and `replicas` sends it to another node. The parts lie in segments that the
agent owns (spotrun.segment), so that they outlive the worker.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from spotrun.boxes import Box, spread
from spotrun.segment import Header, Piece, Segment, encode_head, layout, needed_bytes

logger = logging.getLogger("spotrun")

TURNS = "ab"


class Shelf(Protocol):
    """Where segments lie: with the agent, or in this process alone."""

    def segment(self, name: str, size_bytes: int) -> str:
        """The path of a segment of at least that size. Raises OSError."""

    def segments(self) -> dict[str, str]:
        """The paths of all segments of this node."""


class PrivateShelf:
    """The segments of a process without an agent."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def segment(self, name: str, size_bytes: int) -> str:
        if name not in self._fds:
            self._fds[name] = os.memfd_create(f"spotrun-{name}", os.MFD_CLOEXEC)
            os.fchmod(self._fds[name], 0o600)
        fd = self._fds[name]
        if os.fstat(fd).st_size < size_bytes:
            os.ftruncate(fd, size_bytes)
        return f"/proc/self/fd/{fd}"

    def segments(self) -> dict[str, str]:
        return {name: f"/proc/self/fd/{fd}" for name, fd in self._fds.items()}


@dataclass(frozen=True, slots=True)
class Stamp:
    """Whose part it is, of which step."""

    round: int
    step: int
    rank: int
    world_size: int
    part: int
    parts: int


@dataclass(frozen=True, slots=True)
class Local:
    """What this rank holds of a tensor."""

    tensor: torch.Tensor
    shape: tuple[int, ...]  # of the whole
    box: Box

    @staticmethod
    def of(tensor: torch.Tensor) -> Local:
        if not is_sharded(tensor):
            return Local(tensor.detach(), tuple(tensor.shape), Box.whole(tensor.shape))
        _, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
        local = tensor.to_local().detach()
        return Local(local, tuple(tensor.shape), Box(tuple(start), tuple(local.shape)))


@dataclass(frozen=True, slots=True)
class Plan:
    """How this worker's part of the state lies in a segment."""

    key: tuple[Any, ...]  # of all that it depends on
    pieces: dict[str, Piece]
    cuts: dict[str, tuple[slice, ...]]  # of what this rank holds, where that is not all
    head: bytes
    data_bytes: int

    def source(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """What is copied to the piece of that name."""
        held = (tensor.to_local() if is_sharded(tensor) else tensor).detach()
        return held[self.cuts[name]] if name in self.cuts else held


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What decides which box of it this rank holds; no mesh, which would keep the process groups of its round."""
    if not is_sharded(tensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(mesh.shape), tuple(mesh.get_coordinate() or ()), tensor.placements


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    return isinstance(tensor, DTensor)


class Memory:
    """This worker's part in the snapshots. `keep` is called on the training thread."""

    def __init__(self, shelf: Shelf, local_rank: int) -> None:
        self.shelf = shelf
        self.local_rank = local_rank
        self.costs_s: deque[float] = deque(maxlen=5)  # of the last snapshots
        self.written: dict[str, Header] = {}  # by path: what this very process has published
        self._plan: Plan | None = None
        self._pairs: dict[str, list[Segment | None]] = {}
        self._background = Background()
        self._stream: Any = None
        self._copied: Any = None  # the event after which the GPU has been read

    def keep(
        self,
        stamp: Stamp,
        state: Mapping[str, Any],
        extra: Mapping[str, Any],
        then: Callable[[Segment, Header], None] | None = None,
    ) -> None:
        """Copy this part of `state` (nested dicts and lists of tensors and plain values); `then` is called with it.

        Returns when the training may go on (see `settle` for a GPU); what remains is done on another thread. Raises
        OSError where there is no memory.
        """
        tensors: dict[str, torch.Tensor] = {}
        rest = split(state, "", tensors)
        plan = self._plan_of(stamp, tensors)
        packed = pack({"state": rest, **extra})
        self._background.wait()
        on_gpu = any(tensors[name].is_cuda for name in plan.pieces)
        size_bytes = needed_bytes(len(plan.head), len(packed), plan.data_bytes)
        segment = self.older("own", size_bytes, pin=on_gpu)
        self.written.pop(segment.path, None)
        header = segment.begin(stamp.round, stamp.step, stamp.part, stamp.parts, plan.head, packed, plan.data_bytes)
        if on_gpu:
            self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):  # None: nothing changes
            views = segment.views(header, plan.pieces)
            if views:
                sources = [plan.source(name, tensors[name]) for name in plan.pieces]
                torch._foreach_copy_(views, sources, non_blocking=on_gpu)
        copied = self._copied = self._stream.record_event() if on_gpu else None

        def finish() -> None:
            if copied is not None:
                copied.synchronize()
            whole = self.written[segment.path] = segment.publish(header)
            if then is not None:
                then(segment, whole)

        self._background.do(finish)

    def _plan_of(self, stamp: Stamp, tensors: Mapping[str, torch.Tensor]) -> Plan:
        """That of the last snapshot where it fits: to make one takes as long as to copy a small model."""
        kinds = ((name, tensor.shape, tensor.dtype, _place(tensor)) for name, tensor in tensors.items())
        key = (stamp.part, stamp.parts, stamp.rank, stamp.world_size, *kinds)
        if self._plan is None or self._plan.key != key:
            local = {name: Local.of(tensor) for name, tensor in tensors.items()}
            mine = {name: one.box for name, one in local.items()}
            if stamp.parts > 1 and not any(map(is_sharded, tensors.values())):
                sizes = {name: (one.shape, one.tensor.nbytes) for name, one in local.items()}
                mine = spread(sizes, stamp.parts)[stamp.part]
            pieces, data_bytes = layout({name: (local[name].tensor, local[name].shape, mine[name]) for name in mine})
            cuts = {name: box.within(local[name].box) for name, box in mine.items() if box != local[name].box}
            head = encode_head(pieces, {"rank": stamp.rank, "world_size": stamp.world_size})
            self._plan = Plan(key, pieces, cuts, head, data_bytes)
        return self._plan

    def settle(self) -> None:
        """Called before the state changes: on a GPU, what is computed from now on waits for the copy."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
            self._copied = None

    @property
    def busy(self) -> bool:
        return self._background.busy

    def wait(self, within_s: float | None = None) -> bool:
        """Until the last snapshot is whole, and `then` has returned; whether it is, without an error."""
        return self._background.wait(within_s)

    def held_bytes(self) -> int:
        """How much this worker's segments have already."""
        mine = [path for name, path in self.shelf.segments().items() if name.startswith(f"{self.local_rank}.")]
        return sum(os.stat(path).st_size for path in mine)

    def older(self, what: str, size_bytes: int, *, pin: bool = False) -> Segment:
        """Of the two segments of that kind the one to be written next, so that the newest whole part stays."""
        if what not in self._pairs:  # an earlier worker may have left them
            paths = self.shelf.segments()
            names = [f"{self.local_rank}.{what}.{turn}" for turn in TURNS]
            self._pairs[what] = [Segment(paths[name], pin=pin) if name in paths else None for name in names]
        pair = self._pairs[what]
        headers = [segment.header() if segment is not None else None for segment in pair]
        ages = [(header.round, header.step) if header is not None else (-1, -1) for header in headers]
        index = ages.index(min(ages))
        there = pair[index]
        if there is None or there.capacity_bytes < size_bytes:
            name = f"{self.local_rank}.{what}.{TURNS[index]}"
            there = pair[index] = Segment(self.shelf.segment(name, size_bytes), pin=pin)
        return there


def state_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    """Of what this rank holds of them."""
    return sum(Local.of(tensor).tensor.nbytes for tensor in tensors.values())


class Background:
    """One thread that does one thing after the other."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._failed = False
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return not self._idle.is_set()

    def do(self, job: Callable[[], None]) -> None:
        """Only when the one before is done."""
        self._idle.clear()
        self._failed = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="spotrun-memory", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def wait(self, within_s: float | None = None) -> bool:
        return self._idle.wait(within_s) and not self._failed

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception as error:  # noqa: BLE001 - a peer is gone, or the memory: the snapshot before this one is whole
                self._failed = True
                logger.debug("a snapshot was not finished: %s", error)
            del job  # it holds tensors, and through them a process group
            self._idle.set()


def split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    """`value` with each tensor taken out into `tensors` under its path."""
    if isinstance(value, torch.Tensor):
        tensors[path] = value
        return None
    if isinstance(value, Mapping):
        return {key: split(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(split(item, f"{path}/{index}", tensors) for index, item in enumerate(value))
    return value


def join(value: Any, path: str, tensors: Mapping[str, torch.Tensor]) -> Any:
    """What `split` took apart."""
    if value is None and path in tensors:
        return tensors[path]
    if isinstance(value, dict):
        return {key: join(item, f"{path}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(join(item, f"{path}/{index}", tensors) for index, item in enumerate(value))
    return value


def pack(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)
