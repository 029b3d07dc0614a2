"""What a waiting node fetches from the members, and whom it follows."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from spotrun.launcher.snapshot_server import SnapshotServer
from spotrun.launcher.snapshots import Snapshots
from spotrun.launcher.standby import Standby, followed
from spotrun.memory import Memory, Stamp
from spotrun.recall import Recall
from spotrun.rendezvous.state import Member, Node, Round
from spotrun.segment import Segment
from tests.waiting import until


def node(name: str, server: SnapshotServer | None = None) -> Node:
    port, key = (server.port, server.key) if server is not None else (1, "")
    return Node(name, "1", "127.0.0.1", 1, 1, 2, snapshot_port=port, snapshot_key=key)


def of(*names: str) -> Round:
    return Round(1, tuple(Member(name, "1", 2) for name in names), "127.0.0.1", 1, "start", "", 0, "1")


class Here:
    """The memory of an agent, as its workers see it."""

    def __init__(self) -> None:
        self.snapshots = Snapshots()

    def segment(self, name: str, size_bytes: int) -> str:
        self.snapshots.make(name, size_bytes)
        return self.snapshots.paths()[name]

    def segments(self) -> dict[str, str]:
        return self.snapshots.paths()

    def keep(self, step: int, *, parts: int = 2, size: int = 300_000) -> None:
        for part in range(parts):
            memory = Memory(self, part)
            state = {"w": torch.full((size,), float(step)), "b": torch.tensor(float(step))}
            memory.keep(Stamp(1, step, part, parts, part, parts), state, {"extra": {}, "final": False})
            assert memory.wait(20)


@pytest.fixture
def member() -> Iterator[Here]:
    here = Here()
    yield here
    here.snapshots.close()


@pytest.fixture
def spare() -> Iterator[Here]:
    here = Here()
    yield here
    here.snapshots.close()


@pytest.fixture
def server(member: Here) -> Iterator[SnapshotServer]:
    made = SnapshotServer("127.0.0.1", member.snapshots, 2)
    yield made
    made.close()


@pytest.fixture
def follow(spare: Here) -> Iterator[Callable[[Node], Standby]]:
    """A waiting node that follows that one."""
    made: list[Standby] = []

    def start(source: Node) -> Standby:
        standby = Standby(spare.snapshots, lambda: source)
        made.append(standby)
        standby.follow()
        return standby

    yield start
    for standby in made:
        standby.rest()


def state(here: Here) -> tuple[int, dict[str, Any]] | None:
    """The newest whole one, as this node's workers would find it."""
    recall = Recall(Memory(here, 0), None, 0)
    return None if recall.choice is None else (recall.choice.step, recall.fetch(None))


def step_of(here: Here) -> int:
    found = state(here)
    return 0 if found is None else found[0]


def test_the_last_member_is_followed_and_each_waiting_node_follows_another() -> None:
    nodes = [node(name) for name in "axbcy"]
    current = of("a", "b", "c")
    assert [followed(current, nodes, name) for name in "xy"] == [nodes[3], nodes[2]]
    assert followed(current, nodes, "b") is None
    assert followed(of("z"), nodes, "x") is None, "a member whose record is gone"


def test_a_waiting_node_has_what_the_member_has(
    member: Here, spare: Here, server: SnapshotServer, follow: Callable[[Node], Standby]
) -> None:
    follow(node("a", server))
    for step in (3, 4, 7):
        member.keep(step)
        until("it is there", lambda step=step: step_of(spare) == step)
        _, tensors = state(spare) or (0, {})
        assert torch.equal(tensors["/w"], torch.full((300_000,), float(step)))
        assert tensors["/b"] == step
    assert spare.snapshots.held_bytes() == member.snapshots.held_bytes()


def test_a_step_that_not_all_workers_of_the_member_have_is_not_fetched(
    member: Here, spare: Here, server: SnapshotServer, follow: Callable[[Node], Standby]
) -> None:
    member.keep(3)
    memory = Memory(member, 0)
    memory.keep(Stamp(1, 4, 0, 2, 0, 2), {"w": torch.ones(300_000)}, {"extra": {}, "final": False})
    assert memory.wait(20)
    follow(node("a", server))
    until("it is there", lambda: step_of(spare) == 3)


def test_whoever_has_not_the_key_gets_nothing(member: Here, server: SnapshotServer) -> None:
    member.keep(3)
    for request in (
        b'{"key": "", "round": 0, "step": 0}\n',
        b"[]\n",
        b'{"key": 7}\n',
        b"\xff\n",
        b"x" * 5000,
        b"[" * 4000 + b"\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(json.dumps({"key": server.key, "round": 0, "step": 0}).encode() + b"\n")
        assert sock.recv(9) == b'{"parts":', "it still serves those who have it"


def test_after_it_has_come_to_rest_nothing_is_written(
    member: Here, spare: Here, server: SnapshotServer, follow: Callable[[Node], Standby]
) -> None:
    standby = follow(node("a", server))
    member.keep(3)
    until("it is there", lambda: step_of(spare) == 3)
    standby.rest()
    spare.keep(5)
    member.keep(9)
    assert step_of(spare) == 5
    standby.follow()  # the node waits again
    until("it is there", lambda: step_of(spare) == 9)


@pytest.mark.parametrize("harm", ["flip", "cut", "nonsense"])
def test_what_arrives_damaged_is_not_used(
    member: Here, spare: Here, follow: Callable[[Node], Standby], harm: str
) -> None:
    """A member that sends its step damaged, each time that it is asked."""
    member.keep(3)
    told: list[list[Any]] = []
    contents: list[bytes] = []
    for index, path in enumerate(path for _, path in sorted(member.segments().items())):
        segment = Segment(path)
        header = segment.header()
        assert header is not None
        told.append([index, *dataclasses.astuple(header)])
        contents.append(segment.contents(header).numpy().tobytes())
    if harm == "flip":
        contents[1] = contents[1][:-9] + bytes([contents[1][-9] ^ 1]) + contents[1][-8:]
    elif harm == "cut":
        contents[1] = contents[1][:-9]
    else:
        told[1] = [0, "x"]
    asked = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            nonlocal asked
            with contextlib.suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, contextlib.suppress(OSError):
                        sock.recv(4096)
                        asked += 1
                        sock.sendall(json.dumps({"parts": told}).encode() + b"\n" + b"".join(contents))

        thread = threading.Thread(target=answer)
        thread.start()
        spare.keep(2)
        standby = follow(Node("a", "1", "127.0.0.1", 1, 1, 2, snapshot_port=listener.getsockname()[1]))
        until("it has tried twice", lambda: asked > 1)
        standby.rest()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert step_of(spare) == 2
