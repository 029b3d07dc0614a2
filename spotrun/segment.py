"""One part of a snapshot in shared memory that the agent owns: it outlives the worker that wrote it.

    4096 bytes   header: magic, state, round, step, part, parts, sizes, checksum
    head         JSON: which tensors, or which boxes of them, lie where
    rest         the state that is no tensor, as torch.load(weights_only=True) reads it
    data         the tensors, each at a multiple of 64 bytes, from a multiple of 4096 on

It is marked as torn while it is written, and a writer that dies leaves it so. Nobody reads while somebody writes: parts
are read between two rounds, by when the writers of the old one are gone or at rest. The checksum is taken when all has
been copied, so that the training only waits for the copy: CRC-32 of head and rest, and of the sums of 8-byte words of
each MiB of data, which costs about as much as reading it.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spotrun.boxes import Box
from spotrun.errors import BadRecord

RESERVE = 0.1  # of the memory that is free, left for everything else on the node
_HEADER = struct.Struct("<8s8QI")
_STATE = struct.Struct("<Q")
_MAGIC = b"SPOTRUN1"
TORN, WHOLE = 1, 2
PAGE = 4096  # what follows the header begins there
_ALIGN = 64
_BLOCK = 1 << 17  # words of 8 bytes in a block of the checksum
_HOST_REGISTER = 0  # cudaHostRegisterDefault


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a tensor, and where in the data it lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]  # of the whole tensor
    box: Box
    at: int

    @property
    def nbytes(self) -> int:
        return self.box.numel * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Header:
    """What a whole segment says of itself. `part` of `parts` that make up the state of (round, step) together."""

    state: int  # TORN or WHOLE
    round: int
    step: int
    part: int
    parts: int
    head_bytes: int
    rest_bytes: int
    data_bytes: int
    checksum: int

    @property
    def data_at(self) -> int:
        return _pages(PAGE + self.head_bytes + self.rest_bytes)

    @property
    def used_bytes(self) -> int:
        return self.data_at + self.data_bytes


def read_header(start: bytes | mmap.mmap, capacity_bytes: int) -> Header | None:
    """That of the segment which begins so; None: never written, being written, or left half-written."""
    magic, *fields = _HEADER.unpack_from(start, 0)
    if magic != _MAGIC or fields[0] != WHOLE:
        return None
    header = Header(*fields)
    return header if header.used_bytes <= capacity_bytes else None


def layout(tensors: Mapping[str, tuple[torch.Tensor, tuple[int, ...], Box]]) -> tuple[dict[str, Piece], int]:
    """Where each tensor (the local one, the whole's shape, the box it fills) will lie, and the bytes of them all."""
    pieces: dict[str, Piece] = {}
    at = 0
    for name, (tensor, shape, box) in tensors.items():
        pieces[name] = Piece(tensor.dtype, shape, box, at)
        at += -(-pieces[name].nbytes // _ALIGN) * _ALIGN
    return pieces, at


def encode_head(pieces: Mapping[str, Piece], about: Mapping[str, Any]) -> bytes:
    rows = [
        [name, str(piece.dtype).removeprefix("torch."), piece.shape, piece.box.start, piece.box.size, piece.at]
        for name, piece in pieces.items()
    ]
    return json.dumps({"pieces": rows, "about": about}, separators=(",", ":")).encode()


def decode_head(data: bytes) -> tuple[dict[str, Piece], dict[str, Any]]:
    """The pieces by name, and what the writer added. Raises BadRecord."""
    try:
        found = json.loads(data)
        pieces = {}
        for name, kind, shape, start, size, at in found["pieces"]:
            dtype = getattr(torch, kind)
            if not isinstance(dtype, torch.dtype) or not isinstance(name, str):
                raise BadRecord(f"a snapshot names the type {kind!r:.40}")
            pieces[name] = Piece(dtype, tuple(map(int, shape)), Box(tuple(map(int, start)), tuple(map(int, size))), at)
        return pieces, dict(found["about"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadRecord(f"the head of a snapshot cannot be read: {error}") from None


def needed_bytes(head_bytes: int, rest_bytes: int, data_bytes: int) -> int:
    return _pages(PAGE + head_bytes + rest_bytes) + data_bytes


class Segment:
    """A mapping of the segment at `path` (such as /proc/PID/fd/N of the agent)."""

    def __init__(self, path: str, *, pin: bool = False) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self.path = path
        self._viewed: tuple[int, Mapping[str, Piece], list[torch.Tensor]] = 0, {}, []
        if pin:  # so that a GPU copies into it by itself
            cudart: Any = torch.cuda.cudart  # it has no types
            cudart().cudaHostRegister(self.bytes.data_ptr(), self.bytes.numel(), _HOST_REGISTER)

    @property
    def capacity_bytes(self) -> int:
        return self.bytes.numel()

    def header(self) -> Header | None:
        """None where there is no whole part."""
        return read_header(self._map, self.capacity_bytes)

    def begin(self, round: int, step: int, part: int, parts: int, head: bytes, rest: bytes, data_bytes: int) -> Header:
        """From now on, until `publish`, there is no whole part here."""
        header = Header(TORN, round, step, part, parts, len(head), len(rest), data_bytes, 0)
        self._put(header)
        self._map[PAGE : PAGE + len(head)] = head
        self._map[PAGE + len(head) : PAGE + len(head) + len(rest)] = rest
        return header

    def receive(self, header: Header) -> torch.Tensor:
        """As `begin`, for a part that is copied from another node as it is: the bytes to be filled."""
        self._put(dataclasses.replace(header, state=TORN))
        return self.bytes[PAGE : header.used_bytes]

    def publish(self, header: Header) -> Header:
        """All has been copied: from now on the part is whole. Takes the checksum, or trusts that of `receive`."""
        whole = dataclasses.replace(header, state=WHOLE, checksum=header.checksum or self.checksum(header))
        self._put(whole)
        return whole

    def contents(self, header: Header) -> torch.Tensor:
        """Everything behind the header: what a replica is made of."""
        return self.bytes[PAGE : header.used_bytes]

    def head(self, header: Header) -> bytes:
        return self._map[PAGE : PAGE + header.head_bytes]

    def rest(self, header: Header) -> bytes:
        start = PAGE + header.head_bytes
        return self._map[start : start + header.rest_bytes]

    def view(self, header: Header, piece: Piece) -> torch.Tensor:
        """The box as it lies here, not copied. Raises BadRecord where it would lie outside."""
        start = header.data_at + piece.at
        if piece.at < 0 or start + piece.nbytes > header.used_bytes:
            raise BadRecord("a snapshot points outside its data")
        if not piece.nbytes:
            return torch.empty(piece.box.size, dtype=piece.dtype)
        return self.bytes[start : start + piece.nbytes].view(piece.dtype).view(piece.box.size)

    def views(self, header: Header, pieces: Mapping[str, Piece]) -> list[torch.Tensor]:
        """`view` of each; the same ones again for the same `pieces`."""
        at, those, found = self._viewed
        if at != header.data_at or those is not pieces:
            found = [self.view(header, piece) for piece in pieces.values()]
            self._viewed = header.data_at, pieces, found
        return found

    def is_sound(self, header: Header) -> bool:
        """Whether the checksum fits."""
        return self.checksum(header) == header.checksum

    def checksum(self, header: Header) -> int:
        found = zlib.crc32(self._map[PAGE : PAGE + header.head_bytes + header.rest_bytes])
        data = self.bytes[header.data_at : header.used_bytes]
        words = data[: data.numel() // 8 * 8].view(torch.int64)
        whole = words.numel() // _BLOCK * _BLOCK
        sums = words[:whole].view(-1, _BLOCK).sum(1)
        tail = words[whole:].sum().reshape(1)
        return zlib.crc32(torch.cat([sums, tail]).numpy().tobytes(), found) or 1  # 0 means none

    def _put(self, header: Header) -> None:
        # WHOLE comes last: whoever reads it reads the fields that belong to it.
        _HEADER.pack_into(self._map, 0, _MAGIC, *dataclasses.astuple(dataclasses.replace(header, state=TORN)))
        _STATE.pack_into(self._map, len(_MAGIC), header.state)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE
