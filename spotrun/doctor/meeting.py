"""Several doctors at once, one a node: they meet in etcd, measure each pair, and all come to the same findings."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from spotrun.checkpoint.storage import Storage, open_storage
from spotrun.doctor.finding import Finding, Grade, ok
from spotrun.doctor.link import LIMIT_S, Links, Task
from spotrun.doctor.pairs import Link, judge, schedule
from spotrun.errors import EtcdError
from spotrun.rendezvous.creation import own_address
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.session import Session
from spotrun.rendezvous.state import Node, decode, encode

LEASE_S = 10.0
REPORT_S = 120  # a report outlives its writer by this much, for the others to read it
_NCCL = "nccl"


@dataclass(frozen=True, slots=True)
class Results:
    """What one node found."""

    node_id: str
    links: tuple[Link, ...]
    unseen: tuple[str, ...]  # nodes whose file on the storage it does not see


def meet(
    config: EtcdConfig,
    run_id: str,
    expected: int,
    wait_s: float,
    checkpoint_dir: str | None,
    node_id: str | None = None,
) -> list[Finding]:
    """Wait for `expected` nodes and examine what is between them. Raises EtcdError and OSError."""
    keys = Keys(run_id)
    nonce = secrets.token_hex(4)
    name = node_id or f"{socket.gethostname().split('.')[0]}-{nonce}"
    address = own_address(config.endpoints[0], expected)
    marks = None if checkpoint_dir is None else Marks(open_storage(checkpoint_dir), f".doctor-{run_id}")
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(Links(address))
        node = Node(name, nonce, address, links.port, links.port, 1, labels={_NCCL: "yes"} if links.nccl else {})
        client = stack.enter_context(EtcdClient(config))
        session = Session(client, LEASE_S, lambda: None)
        stack.callback(_leave, session)
        if marks is not None:
            marks.put(name)
            stack.callback(marks.remove)
        client.put(keys.node(name), encode(node), session.lease_id)
        here = _gather(client, keys.nodes, lambda values: len(values) >= expected, wait_s)
        nodes = [decode(Node, value) for value in here][:expected]
        names = sorted(it.node_id for it in nodes)  # all tell the same, whoever came first
        if len(nodes) < expected:
            text = f"{len(nodes)} of {expected} nodes came within {wait_s:g} s: {', '.join(names)}"
            return [
                Finding(
                    "nodes",
                    Grade.FAIL,
                    text,
                    "the others do not run, or do not reach etcd",
                    f"spotrun doctor --nodes-expected {expected} --rdzv-endpoint ...   # on each of them, at once",
                )
            ]
        if node not in nodes:
            text = f"{expected} nodes were here before this one: {', '.join(names)}"
            return [Finding("nodes", Grade.FAIL, text, "it was not examined", "give the right --nodes-expected on all")]
        results = Results(name, tuple(_measure(links, node, nodes)), () if marks is None else marks.unseen(names))
        client.put(keys.report(f"{name}.{nonce}"), encode(results), client.grant(REPORT_S))
        wanted = {f"{it.node_id}.{it.incarnation}" for it in nodes}
        limit_s = len(nodes) * LIMIT_S
        _gather(client, keys.reports, lambda values: wanted <= _reporters(client, keys), limit_s)
        told = [decode(Results, kv.value) for kv in client.get_prefix(keys.reports)[0] if Keys.name(kv.key) in wanted]
    return _judge(told, names, checkpoint_dir)


def _judge(told: list[Results], names: list[str], checkpoint_dir: str | None) -> list[Finding]:
    found = [ok("nodes", f"all {len(names)} nodes came: {', '.join(names)}")]
    for name in sorted(set(names) - {it.node_id for it in told}):
        text = f"{name} has told nothing of what it measured"
        found.append(Finding("nodes", Grade.FAIL, text, "it died meanwhile, or lost etcd", f"ssh {name} dmesg | tail"))
    found += judge([link for it in told for link in it.links], names)
    if checkpoint_dir is not None:
        blind = [f"{it.node_id} does not see the file of {', '.join(it.unseen)}" for it in told if it.unseen]
        if blind:
            text = f"{checkpoint_dir} is not the same place on all nodes: {'; '.join(blind)}"
            why = "each node's part of a checkpoint would lie elsewhere, and none would be whole"
            found.append(
                Finding(
                    "shared storage", Grade.FAIL, text, why, "mount the same storage on all, or give s3://bucket/path"
                )
            )
        else:
            found.append(ok("shared storage", f"{checkpoint_dir} is the same place on all nodes"))
    return found


def _measure(links: Links, me: Node, nodes: list[Node]) -> list[Link]:
    own = nodes.index(me)
    found = []
    for pair in (pair for pairs in schedule(len(nodes)) for pair in pairs if own in pair):
        host, peer = nodes[pair[0]], nodes[pair[0] if pair[1] == own else pair[1]]
        backends = ["gloo", _NCCL] if me.labels.get(_NCCL) and peer.labels.get(_NCCL) else ["gloo"]
        for backend in backends:
            task = Task(host.address, host.store_port, f"{pair[0]}-{pair[1]}-{backend}", pair.index(own), backend)
            found.append(Link(me.node_id, peer.node_id, backend, links.run(task)))
    return found


def _gather(client: EtcdClient, prefix: str, enough: Callable[[list[bytes]], bool], wait_s: float) -> list[bytes]:
    """The values below `prefix`, oldest first, once they are enough or the time is up."""
    changed = threading.Event()
    end_s = time.monotonic() + wait_s
    _, revision = client.get_prefix(prefix, keys_only=True)
    watch = client.watch(
        prefix,
        prefix=True,
        start_revision=revision + 1,
        on_event=lambda _: changed.set(),
        on_error=lambda _: changed.set(),
    )
    try:
        while True:
            changed.clear()
            found = sorted(client.get_prefix(prefix)[0], key=lambda kv: kv.create_revision)
            values = [kv.value for kv in found]
            left_s = end_s - time.monotonic()
            if enough(values) or left_s <= 0:
                return values
            changed.wait(left_s)
    finally:
        watch.cancel()


def _reporters(client: EtcdClient, keys: Keys) -> set[str]:
    return {Keys.name(kv.key) for kv in client.get_prefix(keys.reports, keys_only=True)[0]}


def _leave(session: Session) -> None:
    with contextlib.suppress(EtcdError):  # the lease then runs out
        session.close()


class Marks:
    """A file of each node in one folder of the storage."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage = storage
        self._folder = folder

    def put(self, name: str) -> None:
        self._storage.publish(f"{self._folder}/{name}", name.encode())

    def unseen(self, names: list[str]) -> tuple[str, ...]:
        there = self._storage.files(self._folder)
        return tuple(name for name in names if name not in there)

    def remove(self) -> None:
        """By the end every node has looked."""
        with contextlib.suppress(OSError):  # another node removes it at the same time
            self._storage.delete_directory(self._folder)
