"""What the etcd client promises, on one healthy server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from spotrun.rendezvous.etcd import Compare, EtcdClient, KeyValue, Op, WatchEvent
from spotrun.rendezvous.session import Session
from tests.etcd_servers import etcd, etcd_client, shared_etcd  # noqa: F401
from tests.waiting import until

_numbers = itertools.count()


@pytest.fixture
def root(etcd_client: EtcdClient) -> Iterator[str]:  # noqa: F811
    """A prefix of the test's own."""
    prefix = f"/test/{next(_numbers)}/"
    yield prefix
    etcd_client.delete_prefix(prefix)


def test_what_was_put_is_found_until_it_is_deleted(etcd_client: EtcdClient, root: str) -> None:  # noqa: F811
    key = root + "key"
    assert etcd_client.get(key) is None
    first = etcd_client.put(key, "one")
    second = etcd_client.put(key, b"two")
    assert etcd_client.get(key) == KeyValue(key, b"two", first, second, 2, 0)
    assert etcd_client.delete(key)
    assert not etcd_client.delete(key)
    assert etcd_client.get(key) is None


def test_a_watch_tells_all_from_its_revision_on(etcd_client: EtcdClient, root: str) -> None:  # noqa: F811
    start = etcd_client.put(root + "a", "1")
    told: list[WatchEvent] = []
    watch = etcd_client.watch(root, prefix=True, start_revision=start, on_event=told.append, on_error=pytest.fail)
    etcd_client.txn([], [Op.put(root + "b", "2"), Op.put(root + "c", "3")])
    etcd_client.delete(root + "a")
    until("four events", lambda: len(told) == 4)
    assert [(event.kind, event.key[len(root) :], event.value) for event in told] == [
        ("put", "a", b"1"),
        ("put", "b", b"2"),
        ("put", "c", b"3"),
        ("delete", "a", b""),
    ]
    watch.cancel()


def test_a_session_keeps_its_lease_until_it_is_closed(etcd_client: EtcdClient, root: str) -> None:  # noqa: F811
    session = Session(etcd_client, 2.0, lambda: pytest.fail("lost"))
    etcd_client.txn([Compare.absent(root + "key")], [Op.put(root + "key", "", session.lease_id)])
    assert not session.lost.wait(4.5)  # more than two lives of the lease
    assert etcd_client.get(root + "key") is not None
    session.close()
    assert etcd_client.get(root + "key") is None
