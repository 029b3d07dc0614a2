"""When a node joins: not before its agent says so, whatever else it has to tell."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousParameters

from spotrun.rendezvous.creation import create_handler
from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.state import Vitals
from tests.etcd_servers import etcd, shared_etcd
from tests.waiting import until

__all__ = ["etcd", "shared_etcd"]


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


def test_a_node_that_tells_how_its_machine_is_has_not_joined_by_that(etcd: EmbeddedEtcd) -> None:
    """Running nodes would stop and wait until it has imported what its workers need."""
    parameters = RendezvousParameters(
        "etcd-v3", etcd.endpoint, "joining", 1, 2, local_addr="127.0.0.1", node_id="new", lease_ttl="5"
    )
    with contextlib.closing(create_handler(parameters)) as handler:
        member = handler.membership
        member.vitals(Vitals("new", 0.1, 0.1, 1 << 30, 1 << 29))
        mark = Mark()
        handler._reactor.post(mark, None)
        assert mark.reached.wait(30)
        assert not member.standing().joined and handler.client.get(member.keys.node("new")) is None
        handler.start()
        until("it has joined", lambda: member.standing().joined)
        until("its word is there", lambda: handler.client.get(member.keys.vitals_of("new")) is not None)
