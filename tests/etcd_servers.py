"""Real etcd servers for tests: one a session for those that leave it alone, private ones to kill, stop and restart.

from tests.etcd_servers import etcd  # noqa: F401  (the fixture)
def test_x(etcd: EmbeddedEtcd) -> None: ...
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from spotrun.rendezvous.embedded import EmbeddedEtcd
from spotrun.rendezvous.etcd import EtcdClient, EtcdConfig


def client_of(*servers: EmbeddedEtcd, timeout_s: float = 5.0) -> EtcdClient:
    return EtcdClient(EtcdConfig(tuple(server.endpoint for server in servers), timeout_s=timeout_s))


def send_signal(server: EmbeddedEtcd, number: signal.Signals) -> None:
    """Send a signal to the server's process, and to no other."""
    assert server.pid is not None
    os.kill(server.pid, number)


@pytest.fixture(scope="session")
def shared_etcd(nothing_left_behind: None) -> Iterator[EmbeddedEtcd]:
    """One server for all tests; it outlives the single test, which `etcd` hides from the check for processes left."""
    with EmbeddedEtcd() as server:
        yield server


@pytest.fixture
def etcd(shared_etcd: EmbeddedEtcd, no_process_left: None) -> EmbeddedEtcd:
    """The server of the session: use keys of your own, and leave it running."""
    return shared_etcd


@pytest.fixture
def private_etcd() -> Iterator[EmbeddedEtcd]:
    """A server of the test's own: what it is told to survive, it may be subjected to."""
    with EmbeddedEtcd() as server:
        yield server


@pytest.fixture
def etcd_client(etcd: EmbeddedEtcd) -> Iterator[EtcdClient]:
    with client_of(etcd) as client:
        yield client
