"""When a node joins: not before its agent says so, whatever else it has to tell. And how it then stands in line."""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousParameters

from spotrun.rendezvous.coordinator import Coordinator
from spotrun.rendezvous.creation import create_handler
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.handler import EtcdRendezvousHandler
from spotrun.rendezvous.keys import Keys
from spotrun.rendezvous.liveness import Liveness
from spotrun.rendezvous.settings import Settings
from spotrun.rendezvous.state import Drain, Job, Member, Node, Round, Vitals, decode, encode
from tests.etcd_servers import admin, client_of, etcd, kill, private_etcd, shared_etcd
from tests.waiting import until

__all__ = ["etcd", "private_etcd", "shared_etcd"]


class Mark:
    """A part of the reactor that tells when all before it have had their step."""

    def __init__(self) -> None:
        self.reached = threading.Event()

    def handle(self, event: Any) -> None:
        pass

    def step(self, now_s: float) -> float | None:
        self.reached.set()
        return None

    def broken(self, error: Exception) -> None:
        raise error


def handler_of(etcd: EmbeddedEtcd, node_id: str) -> EtcdRendezvousHandler:
    return create_handler(
        RendezvousParameters(
            "etcd-v3", etcd.endpoint, "joining", 1, 2, local_addr="127.0.0.1", node_id=node_id, lease_ttl="5"
        )
    )


def requests_to(etcd: EmbeddedEtcd, method: str) -> int:
    """How many messages of that stream the server has received since it started."""
    with urllib.request.urlopen(f"http://{etcd.endpoint}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.search(rf'^grpc_server_msg_received_total{{grpc_method="{method}".*}} (\d+)', text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_a_node_that_tells_how_its_machine_is_has_not_joined_by_that(etcd: EmbeddedEtcd) -> None:
    """Running nodes would stop and wait until it has imported what its workers need."""
    with contextlib.closing(handler_of(etcd, "new")) as handler:
        member = handler.membership
        member.vitals(Vitals("new", 0.1, 0.1, 1 << 30, 1 << 29))
        mark = Mark()
        handler._reactor.post(mark, None)
        assert mark.reached.wait(30)
        assert not member.standing().joined and handler.client.get(member.keys.node("new")) is None
        handler.start()
        until("it has joined", lambda: member.standing().joined)
        until("its word is there", lambda: handler.client.get(member.keys.vitals_of("new")) is not None)


def test_a_coordinator_takes_no_word_that_was_meant_for_the_one_before_it(etcd: EmbeddedEtcd) -> None:
    """A node that begins its watches anew has another one, while old events are still on their way."""
    keys, liveness, heard = Keys("words"), Liveness(), queue.SimpleQueue[Any]()
    with contextlib.closing(client_of(etcd)) as client, contextlib.closing(liveness):

        def coordinator(post: Callable[[Any], None]) -> Coordinator:
            return Coordinator(client, keys, Job(1, 2, 0), Settings(), "me", "1f", made, liveness, post)

        made = client.put(keys.node("me"), encode(Node("me", "1f", "127.0.0.1", 1, 8, 1)))
        first = Round(1, (Member("me", "1f", 1),), "127.0.0.1", 9, "start", "1 node here", 0, "1f")
        client.put(keys.round, encode(first))
        before = coordinator(heard.put)
        assert before.step(time.monotonic()) is None
        client.put(keys.node("other"), encode(Node("other", "2f", "127.0.0.1", 1, 2, 1)))
        event = heard.get(timeout=30)
        before.close()
        client.delete(keys.node("other"))
        after = coordinator(lambda event: None)
        assert after.step(time.monotonic()) is None
        after.handle(event)
        assert after.step(time.monotonic()) is None
        after.close()
        found = client.get(keys.round)
        assert found is not None and decode(Round, found.value) == first  # none with a node that is gone


def test_a_node_whose_predecessor_joined_before_a_compaction_watches_it_and_is_quiet(
    private_etcd: EmbeddedEtcd,
) -> None:
    first, second = (handler_of(private_etcd, name) for name in ("first", "second"))
    with contextlib.closing(first), contextlib.closing(second):
        for handler in (first, second):
            handler.start()
            until("it has joined", lambda handler=handler: handler.membership.standing().joined)  # type: ignore[misc]
        until("a round", lambda: second.membership.standing().round)
        admin(private_etcd, "kv/compaction", revision=second.client.put("/elsewhere", "something"))
        kill(private_etcd)  # so that all watches are begun anew
        private_etcd.start()
        second.client.put(second.membership.keys.drain("first"), encode(Drain("first", 60.0, "somebody")))
        until("it hears again", lambda: "first" in second.membership.standing().drains)
        watching, renewing = (requests_to(private_etcd, method) for method in ("Watch", "LeaseKeepAlive"))
        until("four renewals", lambda: requests_to(private_etcd, "LeaseKeepAlive") >= renewing + 4)
        assert requests_to(private_etcd, "Watch") < watching + 40  # its own, a few probes; or some 70 a second
