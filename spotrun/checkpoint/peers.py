"""Messages between the ranks of one save: point to point, so that a rank that is gone is known by name.

They go over the caller's gloo group with tags of their own, from the background thread; collectives of the training
thread on the same group are not confused by them, while collectives of two threads on one group would hang.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

import torch
from torch.distributed import ProcessGroup

LENGTH_TAG = 9_301
BODY_TAG = 9_302


class PeerLost(Exception):
    """Raised by `send` and `receive` when the other rank is gone or silent for longer than the group's timeout."""

    def __init__(self, rank: int, why: str) -> None:
        super().__init__(f"rank {rank} is gone: {why}")
        self.rank = rank


class Peers(Protocol):
    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def send(self, to: int, message: dict[str, Any]) -> None: ...

    def receive(self, source: int) -> dict[str, Any]: ...


class Alone:
    """A world of one rank."""

    rank = 0
    size = 1

    def send(self, to: int, message: dict[str, Any]) -> None:
        raise AssertionError("a world of one has no peers")

    def receive(self, source: int) -> dict[str, Any]:
        raise AssertionError("a world of one has no peers")


class GroupPeers:
    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self.rank = group.rank()
        self.size = group.size()

    def send(self, to: int, message: dict[str, Any]) -> None:
        body = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        try:
            self._group.send([torch.tensor([body.numel()])], to, LENGTH_TAG).wait()
            self._group.send([body], to, BODY_TAG).wait()
        except RuntimeError as error:
            raise PeerLost(to, str(error)) from error

    def receive(self, source: int) -> dict[str, Any]:
        length = torch.empty(1, dtype=torch.int64)
        try:
            self._group.recv([length], source, LENGTH_TAG).wait()
            body = torch.empty(int(length.item()), dtype=torch.uint8)
            self._group.recv([body], source, BODY_TAG).wait()
        except RuntimeError as error:
            raise PeerLost(source, str(error)) from error
        message: dict[str, Any] = json.loads(body.numpy().tobytes())
        return message
