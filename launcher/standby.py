"""A node that waits above max follows the training: what a member's workers keep in memory lies in its own, too.

So a takeover has nothing to fetch where it goes on from the step that was fetched last, and the state outlives members
that are lost. What is fetched takes the place of what this node's own workers would have kept, two by turns, and is
found by them as if they had. A part whose checksum does not fit stays marked as torn.

Of the members the last one is followed, whose part of a sharded state falls to the next newcomer; where several nodes
wait, each follows another one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from spotrun import events
from spotrun.errors import BadRecord, EtcdError
from spotrun.launcher.snapshot_server import TIMEOUT_S, SnapshotServer
from spotrun.launcher.snapshots import Snapshots
from spotrun.launcher.vitals import memory
from spotrun.rendezvous.handler import EtcdRendezvousHandler
from spotrun.rendezvous.membership import Membership
from spotrun.rendezvous.state import Node, Round, readable
from spotrun.segment import RESERVE, WHOLE, Header, Segment

logger = logging.getLogger("spotrun")

LOOK_S = 0.5  # between two looks whether there is something newer
REST = 4.0  # times as long as fetching took, which thereby takes a fifth of the way between the two nodes at most
AGAIN = 20  # looks, after which it finds out anew whom to follow
LINE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
TURNS = "ab"


def followed(current: Round, nodes: Sequence[Node], node_id: str) -> Node | None:
    """Which member that waiting node follows; `nodes` in the order of their arrival. Pure."""
    members = [member.node_id for member in current.members]
    waiting = [node.node_id for node in nodes if node.node_id not in members]
    if node_id not in waiting:
        return None
    name = members[-1 - waiting.index(node_id) % len(members)]
    found = [node for node in nodes if node.node_id == name and node.snapshot_port]
    return found[0] if found else None


def lend(snapshots: Snapshots, handler: EtcdRendezvousHandler, nproc: int) -> SnapshotServer:
    """Let nodes that wait follow this one, of `nproc` workers, where it is a member; called before it joins."""
    server = SnapshotServer(handler.address, snapshots, nproc)
    handler.membership.announce(snapshot_port=server.port, snapshot_key=server.key)
    return server


def find(membership: Membership) -> Node | None:
    """Whom this node follows. Raises EtcdError."""
    current = membership.standing().round
    if current is None:
        return None
    found, _ = membership.client.get_prefix(membership.keys.nodes)
    in_line = sorted(found, key=lambda kv: kv.create_revision)
    return followed(current, readable(Node, [kv.value for kv in in_line]), membership.standing().node_id)


class Standby:
    """`follow` and `rest` are called by one thread."""

    def __init__(self, snapshots: Snapshots, find: Callable[[], Node | None]) -> None:
        """`find` names the member to follow; it may raise EtcdError."""
        self._snapshots = snapshots
        self._find = find
        self._writing = threading.Lock()
        self._sock: socket.socket | None = None
        self._stop: threading.Event | None = None

    def follow(self) -> None:
        """Keep up with the training from now on, on a thread of its own."""
        if self._stop is None:
            self._stop = threading.Event()
            threading.Thread(target=self._run, args=(self._stop,), name="spotrun-standby", daemon=True).start()

    def rest(self) -> None:
        """Write nothing any more: this node's workers are about to use what is there, or the agent ends."""
        if self._stop is not None:
            self._stop.set()
            sock = self._sock
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            with self._writing:
                self._stop = None

    def _run(self, stop: threading.Event) -> None:
        at, rest_s, node, asked = (0, 0), 0.0, None, 0
        while not stop.wait(rest_s):
            began_s = time.monotonic()
            try:
                if node is None or asked == AGAIN:
                    node, asked = self._find(), 0
                asked += 1
                if node is not None:
                    at = self._fetch(node, at, stop) or at
            except _Short as short:
                events.emit("memory_short", str(short), level=logging.WARNING)
                return
            except (OSError, EtcdError, ValueError, LookupError, TypeError, RecursionError) as error:
                logger.debug("nothing was fetched: %s", error)  # the other node may be a stranger, too
                node = None
            rest_s = max(LOOK_S, REST * (time.monotonic() - began_s))

    def _fetch(self, node: Node, newer_than: tuple[int, int], stop: threading.Event) -> tuple[int, int] | None:
        """The round and step of what was fetched; None: there is nothing newer."""
        with socket.create_connection((node.address, node.snapshot_port), TIMEOUT_S) as sock, self._writing:
            self._sock = sock
            if stop.is_set():
                return None
            request = {"key": node.snapshot_key, "round": newer_than[0], "step": newer_than[1]}
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb", buffering=CHUNK_BYTES) as stream:
                parts = _parts(stream.readline(LINE_BYTES))
                if not parts:
                    return None
                self._look_whether_it_fits(parts)
                arriving = []
                for local_rank, header in parts.items():
                    segment = self._older(local_rank, header.used_bytes)
                    _fill(segment.receive(header), stream)
                    arriving.append((segment, header))
                if not all(segment.is_sound(header) for segment, header in arriving):
                    raise BadRecord("a part arrived damaged")
                for segment, header in arriving:  # only now: the step before stays whole until this one is
                    segment.publish(header)
            header = next(iter(parts.values()))
            size_bytes = sum(part.used_bytes for part in parts.values())
            events.emit(
                "standby",
                f"this node waits, and has the state of step {header.step} in memory, as {node.node_id} has it"
                if newer_than == (0, 0)
                else "",
                level=logging.INFO if newer_than == (0, 0) else logging.DEBUG,
                step=header.step,
                source=node.node_id,
                bytes=size_bytes,
            )
            self._snapshots.tell()
            return header.round, header.step

    def _older(self, local_rank: int, size_bytes: int) -> Segment:
        """Of the two segments of that worker the one to be written next."""
        ages = {}
        paths = self._snapshots.paths()
        for turn in TURNS:
            name = f"{local_rank}.own.{turn}"
            header = Segment(paths[name]).header() if name in paths else None
            ages[name] = (header.round, header.step) if header is not None else (-1, -1)
        name = min(ages, key=lambda name: ages[name])
        self._snapshots.make(name, size_bytes)
        return Segment(self._snapshots.paths()[name])

    def _look_whether_it_fits(self, parts: dict[int, Header]) -> None:
        needed = len(TURNS) * sum(header.used_bytes for header in parts.values())
        needed -= self._snapshots.held_bytes()
        free = int(memory().free_bytes * (1 - RESERVE))
        if needed > free:
            raise _Short(
                f"this node waits without the state in memory: that would need {needed / 1e9:.2f} GB more, and it has "
                f"{free / 1e9:.2f} GB to spare"
            )


class _Short(Exception):
    """There is no memory for it."""


def _parts(line: bytes) -> dict[int, Header]:
    """What the other node is about to send, by local rank. Raises ValueError, TypeError, LookupError or BadRecord."""
    found: dict[int, Header] = {}
    told: Any = json.loads(line)["parts"]
    for local_rank, *fields in told:
        header = Header(*map(int, fields))
        if header.state != WHOLE or min(fields) < 0 or not 0 <= int(local_rank) < 1000:
            raise BadRecord("what another node tells of its memory makes no sense")
        found[int(local_rank)] = header
    return found


def _fill(buffer: torch.Tensor, stream: Any) -> None:
    array: Any = buffer.numpy()  # to its types it is no buffer
    view = memoryview(array)
    at = 0
    while at < len(view):
        got = stream.readinto(view[at:])
        if not got:
            raise ConnectionError("the other node went away")
        at += got
